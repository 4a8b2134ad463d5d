"""What workers and the driver of a run say to each other: names and numbers, and nothing else."""

from typing import NamedTuple

# What a worker asks.
HELLO = "hello"  # text: its fingerprint, as JSON
FIND = "find"  # is this artifact finished?
BLOCK = "block"  # a block of it, or that it is finished
WAIT = "wait"  # until it is finished, by the driver alone
NEXT = "next"  # what else is there to do
DONE = "done"  # a block is written; and what BLOCK asks
NO_MEMORY = "no memory"  # for a block; likewise
REFUSED = "refused"  # the block cannot be computed by anybody; text: type and sentence, as JSON
UNFIT = "unfit"  # this machine lacks what every worker needs; text: a sentence
ENDED = "ended"  # the worker itself; text: why, empty where it was told to

# What the driver answers.
BEGIN = "begin"  # a run, whose number is start; text: what it is of, as JSON
FINISHED = "finished"  # text: how the artifact is kept, as JSON
NOT_YET = "not yet"
LEASED = "leased"  # the block [start, stop)
INSIDE = "inside"  # the driver shares out something that the artifact is made of
STOP = "stop"


class Ask(NamedTuple):
    """From a worker; run: the number of the run that it is at; name, key: of an artifact; start, stop: of a block."""

    kind: str
    run: int = 0
    name: str = ""
    key: str = ""
    start: int = 0
    stop: int = 0
    text: str = ""


class Reply(NamedTuple):
    """From the driver."""

    kind: str
    start: int = 0
    stop: int = 0
    text: str = ""
