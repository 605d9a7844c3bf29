# Training, search, export and all else that `ctrkit` does.
#
#   docker build -f docker/train.Dockerfile -t ctrkit-train .
#   docker build -f docker/train.Dockerfile --build-arg DEVICE=gpu -t ctrkit-train:gpu .
#   docker run --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD:/data" ctrkit-train train clicks.yaml
#
# It writes to /data, the folder that is mounted there: hence as the user whose folder it is.
#
# Without a GPU give the build argument PIP_EXTRA_INDEX_URL, the index of PyTorch's CPU builds: the default build works
# too, but brings gigabytes of CUDA libraries. With one, those libraries come with torch; the host needs NVIDIA's driver and
# container toolkit, and the container `--gpus all`.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG DEVICE=cpu
ARG PIP_EXTRA_INDEX_URL=
RUN python -m venv /venv
WORKDIR /source
COPY docker/fbgemm-shim docker/fbgemm-shim
RUN case "$DEVICE" in \
      cpu) shim=./docker/fbgemm-shim ;; \
      gpu) shim= ;; \
      *) echo "DEVICE is cpu or gpu, not '$DEVICE'" >&2; exit 1 ;; \
    esac \
    && /venv/bin/pip install --no-cache-dir torch==2.13.0 $shim torchrec==1.8.0
COPY pyproject.toml README.md ./
COPY ctrkit ctrkit
COPY pipelines pipelines
COPY serving serving
RUN /venv/bin/pip install --no-cache-dir '.[train]' && /venv/bin/pip check

FROM python:${PYTHON}-slim
# g++: for `training: {compile: true}` on CPU.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home ctrkit
COPY --from=build /venv /venv
COPY configs /configs
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["ctrkit"]
CMD ["doctor"]
