"""Settings that several models share."""

from typing import Annotated

from pydantic import Field

Hidden = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(description="units of each hidden layer")]
Dropout = Annotated[float, Field(ge=0, lt=1, description="share of units left out in a training step")]
BatchNorm = Annotated[bool, Field(description="normalise each hidden unit over the batch before its relu")]
