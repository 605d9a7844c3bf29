"""What all served versions have: a name, a number, and a bound on the requests that they answer at a time."""

from serving.problems import Busy
from serving.settings import ServingSettings


class Answering:
    """
    Attributes:
        name, version: of the model.
        in_flight: requests that are being answered.
    """

    def __init__(self, name: str, version: int, settings: ServingSettings) -> None:
        self.name = name
        self.version = version
        self.in_flight = 0
        self._most = settings.max_in_flight

    def admit(self) -> None:
        """Counts a request in; the caller counts it out with ``leave``.

        Raises:
            Busy: as many as are allowed are being answered.
        """
        if self.in_flight >= self._most:
            raise Busy(f"the model '{self.name}' is answering {self.in_flight:,} requests, which is its limit", "Ask again in a moment")
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1
