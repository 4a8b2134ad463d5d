"""``python -m fcdeploy`` is ``fcdeploy``."""

from fcdeploy.cli import main

if __name__ == "__main__":
    main()
