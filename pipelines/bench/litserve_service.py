"""The same graph behind LitServe: ``python -m pipelines.bench.litserve_service BUNDLE WORKERS PORT``, answering ``POST /score``.

So many inference workers and as many API servers, the faster of its two queues, no batching: a request has many rows already.
"""

import sys
from typing import Any

import litserve  # pyright: ignore[reportMissingImports]

from ctrkit.bundle import open_bundle
from pipelines.bench.peer_feed import PlainModel


class Scorer(litserve.LitAPI):
    def __init__(self, bundle: str) -> None:
        super().__init__(api_path="/score")
        self._bundle = bundle

    def setup(self, device: str) -> None:
        self._model = PlainModel(open_bundle(self._bundle))

    def decode_request(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        return request["rows"]

    def predict(self, x: list[dict[str, Any]]) -> list[float]:
        return self._model.score(lambda name: [row.get(name) for row in x])

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        return {"probabilities": output}


if __name__ == "__main__":
    workers, port = int(sys.argv[2]), int(sys.argv[3])
    server = litserve.LitServer(Scorer(sys.argv[1]), accelerator="cpu", workers_per_device=workers, fast_queue=True)
    server.run(host="127.0.0.1", port=port, num_api_servers=workers, log_level="warning", generate_client_file=False)
