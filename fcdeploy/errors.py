"""The few ways in which fcdeploy fails, each with the exit code that the command line returns."""


class FcdeployError(Exception):
    """Something went wrong that is neither the user's mistake nor a missed tolerance (exit code 1)."""

    exit_code = 1


class InputError(FcdeployError, ValueError):
    """What the user gave cannot be used: one sentence says what, where and what to do (exit code 2)."""

    exit_code = 2


class ParityError(FcdeployError):
    """An exported graph does not give the numbers of the network it came from (exit code 3)."""

    exit_code = 3


class MissingDependencyError(FcdeployError, ImportError):
    """A package that this command needs is not installed; the sentence holds the command that installs it."""

    exit_code = 2


class BrokenDependencyError(MissingDependencyError):
    """A package that this command needs is installed and does not load; the sentence holds the reason."""


class FcdeployWarning(UserWarning):
    """Something was changed on the user's behalf, for example a k larger than the number of faces."""
