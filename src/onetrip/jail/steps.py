"""Names for what is done while a jail is built, and the error that says which step could not be done."""

from typing import Final


class StepFailed(Exception):
    """A step of the jail could not be done; the process that raised this must end. `step` names it, `errno` is the kernel's."""

    def __init__(self, step: str, errno: int, detail: str) -> None:
        super().__init__(f"{step}: {detail}")
        self.step, self.errno, self.detail = step, errno, detail


class step:  # noqa: N801 - reads as a statement: `with step("…"):`
    """Name what is done; an OSError inside becomes StepFailed."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name: Final = name

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise StepFailed(self._name, error.errno or 0, str(error)) from error
