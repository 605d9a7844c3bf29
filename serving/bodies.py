"""Requests and responses as ``/docs`` shows them. Rows are checked against the model's features, not here."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Row = dict[str, Any]
_EXAMPLE_ROW = {"user_id": "u1", "item_id": "i7", "price": 9.5, "tags": ["new", "sale"]}


SPLIT_KEY = {"name": "X-Split-Key", "in": "header", "schema": {"type": "string"}, "description": "requests with one key get one version"}


class ScoreRequest(BaseModel):
    """Rows to score. A feature that is left out or null counts as missing; an unknown name or a wrong type is a 422."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["rows"]}, {"required": ["columns"]}]})

    rows: list[Row] | None = Field(None, description="one object a row: feature name -> raw value", examples=[[_EXAMPLE_ROW]])
    columns: dict[str, list[Any]] | None = Field(
        None, description="instead of rows: feature name -> the rows' values", examples=[{"user_id": ["u1", "u2"], "price": [9.5, None]}]
    )


class ScoreResponse(BaseModel):
    model: str
    version: int
    probabilities: list[float] | dict[str, list[float]] = Field(
        description="one a row, in the rows' order; of a model of several tasks a list for each, under its name"
    )


class RankRequest(BaseModel):
    """One context and the candidates to order in it. A feature is given by the context or by the candidates, not by both."""

    context: Row = Field(default_factory=dict, description="features that all candidates share", examples=[{"user_id": "u1"}])
    candidates: list[Row] = Field(
        description="the other features, one object a candidate", examples=[[{"item_id": "i7"}, {"item_id": "i9"}]]
    )
    top_k: int | None = Field(None, ge=1, description="how many to return; all without it")
    task: str | None = Field(None, description="of a model of several tasks: which one ranks; without it the main one")


class RankedCandidate(BaseModel):
    index: int = Field(description="place in the request's candidates")
    score: float = Field(description="probability of a click, or of the task that ranks")
    candidate: Row


class RankResponse(BaseModel):
    model: str
    version: int
    candidates: list[RankedCandidate] = Field(description="best first; equal scores keep the request's order")


class RefusedVersion(BaseModel):
    version: int
    reason: str


class ModelSummary(BaseModel):
    name: str
    kind: Literal["scorer", "towers"] | None = Field(description="towers answer :recommend, a scorer :score and :rank; null as version is")
    version: int | None = Field(description="the version that is served; null where none can be: 'refused' says why")
    versions: list[int] = Field(description="all versions that are loaded")
    refused: list[RefusedVersion] = Field(
        description="versions that cannot be served: spoilt ones, and one that is pinned and is not there"
    )
    split: dict[str, float] | None = Field(None, description="version -> its share of the requests that name none, where they are split")
    shadow: int | None = Field(None, description="version that scores, unseen, what others have answered")


class ModelList(BaseModel):
    models: list[ModelSummary]


class FeatureDescription(BaseModel):
    name: str
    kind: str
    dtype: str = Field(description="of a value in JSON: string, int or number")


class ModelDescription(ModelSummary):
    model: str = Field(description="the model's name in ctrkit, such as autoint")
    created: str
    label: str | dict[str, str] = Field(description="what is predicted; of several tasks what each is, the main one first")
    features: list[FeatureDescription]
    metrics: dict[str, Any]


class CatalogueDescription(BaseModel):
    indexed: int = Field(description="items of the bundle's index")
    hidden: int = Field(description="of those, removed or changed since")
    added: int = Field(description="items that clients added or changed")


class TowersDescription(ModelSummary):
    model: str = Field(description="the method's name in ctrkit, such as two_tower")
    created: str
    user_features: list[FeatureDescription]
    item_features: list[FeatureDescription]
    item_key: str = Field(description="the feature whose value names an item")
    width: int = Field(description="of the vectors")
    items: CatalogueDescription
    metrics: dict[str, Any]


class Problem(BaseModel):
    loc: list[str | int] = Field(description="where in the request")
    msg: str
    type: str


class Unprocessable(BaseModel):
    detail: list[Problem]


class Refusal(BaseModel):
    detail: str


class Tensor(BaseModel):
    """Under the graph's own name; ``data`` is flat or nested, or lies behind the JSON when ``parameters`` has ``binary_data_size``."""

    name: str
    shape: list[int]
    datatype: str = Field(examples=["BYTES", "INT64", "FP64", "FP32"])
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferRequest(BaseModel):
    """The Open Inference Protocol's."""

    id: str | None = None
    inputs: list[Tensor]
    outputs: list[dict[str, Any]] | None = None
    parameters: dict[str, Any] | None = None


def infer_schema() -> dict[str, Any]:
    """``InferRequest`` in one piece, as a document of many schemas can hold it."""
    schema = InferRequest.model_json_schema()
    del schema["$defs"]
    schema["properties"]["inputs"]["items"] = Tensor.model_json_schema()
    return schema


class InferResponse(BaseModel):
    id: str | None = None
    model_name: str
    model_version: str
    outputs: list[Tensor]


class ProtocolError(BaseModel):
    """A refusal as the Open Inference Protocol writes it."""

    error: str
