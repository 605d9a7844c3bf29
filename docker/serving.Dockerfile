# The scoring service: no torch, no compiler, no root; it writes to /tmp only, and only with several workers.
#
#   docker build -f docker/serving.Dockerfile -t ctrkit-serving .
#   docker run --read-only --tmpfs /tmp -p 8000:8000 -v "$PWD/repo:/models:ro" ctrkit-serving --workers 2
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
RUN python -m venv /venv
WORKDIR /source
COPY pyproject.toml README.md ./
COPY ctrkit ctrkit
COPY pipelines pipelines
COPY serving serving
RUN /venv/bin/pip install --no-cache-dir '.[serving,otel]'

FROM python:${PYTHON}-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin ctrkit
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["ctrkit", "serve", "/models", "--host", "0.0.0.0", "--port", "8000"]
