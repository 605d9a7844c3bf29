"""Why a request is refused: each reason knows its HTTP status."""

from collections.abc import Iterator

from ctrkit.errors import CtrkitError

Location = tuple[str | int, ...]


class Refused(CtrkitError):
    """A request that is not answered.

    Attributes:
        status: of the HTTP answer.
        retry_after: seconds after which asking again makes sense, None when it does not.
    """

    status = 400
    retry_after: int | None = None


class InvalidBody(Refused):
    """A body that the model cannot take.

    Attributes:
        location: where in the body: ``("rows", 3, "price")``.
        problem: what is wrong there, naming row and field.
    """

    status = 422

    def __init__(self, location: Location, problem: str) -> None:
        super().__init__(problem)
        self.location = location


class TooLarge(Refused):
    """More rows, or more bytes, than the service allows."""

    status = 413


class WrongType(Refused):
    """A body in a format that is not read here."""

    status = 415


class NotAcceptable(Refused):
    """An answer in a format that is not written here."""

    status = 406


class NoKey(Refused):
    """No API key, or not one of those that are known."""

    status = 401


class Forbidden(Refused):
    """The service is set up not to do this."""

    status = 403


class UnknownModel(Refused):
    """No such model, or no such version of it."""

    status = 404


class WrongKind(Refused):
    """A model that does something else than what it is asked."""

    status = 400


class NotReady(Refused):
    """Models are still being loaded, or could not be; or the service is about to end."""

    status = 503
    retry_after = 1


class NotKept(Refused):
    """A change that could not be written down, and was not made."""

    status = 503


class Busy(Refused):
    """The model has as many requests as it may have at a time."""

    status = 429
    retry_after = 1


class TooSlow(Refused):
    """The answer took longer than the service allows."""

    status = 503
    retry_after = 1


class SlowBody(Refused):
    """The body took longer to arrive than the service allows."""

    status = 408


def kinds() -> Iterator[type[Refused]]:
    """All reasons there are."""
    yield from Refused.__subclasses__()
