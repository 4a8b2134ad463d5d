"""``dying_run.py`` for lists of images: small steps between two commits."""

import sys

import dying_run

from fcdeploy.runtime import embed

COMMIT_LINES = 8

if __name__ == "__main__":
    embed.COMMIT_LINES = COMMIT_LINES
    dying_run.run(int(sys.argv[1]), sys.argv[2:])
