# syntax=docker/dockerfile:1.7
# An edge: the tails of a bundle behind one port. Targets: cpu (what is built if none is named) and gpu.
#
#   docker build -f deploy/docker/edge.Dockerfile --target cpu -t aecnn-edge:cpu .
#   docker build -f deploy/docker/edge.Dockerfile --target gpu -t aecnn-edge:gpu .
#
# From the repository's root. docs/containers.md says how they are run, and what was tried.

ARG PYTHON_IMAGE=python:3.13.7-slim-trixie
ARG CUDA_DEVEL_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG CUDA_BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04

# The wheel of this checkout; its files' times are SOURCE_DATE_EPOCH, so that the same sources give the same bytes.
FROM ${PYTHON_IMAGE} AS wheel
ARG SOURCE_DATE_EPOCH=315532800
ENV PIP_CACHE_DIR=/var/cache/pip
WORKDIR /source
COPY deploy/docker/locks/build.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m venv /build && /build/bin/pip install --require-hashes --requirement build.txt
COPY pyproject.toml README.md LICENSE ./
COPY aecnn_deploy aecnn_deploy
COPY calibration calibration
COPY exporters exporters
COPY runtimes runtimes
COPY zoo zoo
RUN /build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /dist .

FROM ${PYTHON_IMAGE} AS cpu-packages
ENV PIP_CACHE_DIR=/var/cache/pip
COPY deploy/docker/locks/edge.txt /locks/
# Compiled after it: the times in what pip compiles would differ from build to build.
RUN --mount=type=cache,target=/var/cache/pip --mount=type=bind,from=wheel,source=/dist,target=/dist \
    python3 -m venv --without-pip /usr/local/lib/aecnn \
    && python3 -m pip --python /usr/local/lib/aecnn/bin/python install --no-compile \
       --require-hashes --requirement /locks/edge.txt \
    && python3 -m pip --python /usr/local/lib/aecnn/bin/python install --no-compile --no-deps --no-index \
       "$(echo /dist/aecnn_deploy-*.whl)[edge]" \
    && python3 -m pip --python /usr/local/lib/aecnn/bin/python check \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /usr/local/lib/aecnn/lib

FROM ${CUDA_DEVEL_IMAGE} AS gpu-packages
# pycuda has no wheels: its sources want a compiler, Python's headers and CUDA's.
# No releases of packages are named: Ubuntu's archive keeps only the newest of each, and a pinned one is gone in a month.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_CACHE_DIR=/var/cache/pip
COPY deploy/docker/locks/edge-gpu.txt /locks/
RUN --mount=type=cache,target=/var/cache/pip --mount=type=bind,from=wheel,source=/dist,target=/dist \
    python3 -m venv --without-pip /usr/local/lib/aecnn \
    && python3 -m pip --python /usr/local/lib/aecnn/bin/python install --no-compile \
       --require-hashes --requirement /locks/edge-gpu.txt \
    && python3 -m pip --python /usr/local/lib/aecnn/bin/python install --no-compile --no-deps --no-index \
       "$(echo /dist/aecnn_deploy-*.whl)[edge,tensorrt]" \
    && python3 -m pip --python /usr/local/lib/aecnn/bin/python check \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /usr/local/lib/aecnn/lib

FROM ${CUDA_BASE_IMAGE} AS gpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="aecnn-edge" \
      org.opencontainers.image.description="AECNN edge: the tails of a bundle on TensorRT, behind one port" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# pycuda's extension is linked to cuRAND; CUDA's runtime is the base image's, the driver comes from the host.
# No releases are named, as above; cuRAND's is in its name.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libcurand-13-0 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 aecnn \
    && useradd --no-log-init --uid 10001 --gid 10001 --home-dir /var/lib/aecnn --shell /usr/sbin/nologin aecnn \
    && install -d -o 10001 -g 10001 /var/lib/aecnn /var/cache/aecnn /bundle
COPY --from=gpu-packages /usr/local/lib/aecnn /usr/local/lib/aecnn
COPY deploy/docker/healthcheck.py /usr/local/lib/aecnn/healthcheck.py
ENV PATH=/usr/local/lib/aecnn/bin:$PATH \
    HOME=/var/lib/aecnn \
    XDG_CACHE_HOME=/var/cache/aecnn \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    AECNN_HEALTH_URL=http://127.0.0.1:8765/healthz
WORKDIR /var/lib/aecnn
VOLUME ["/bundle", "/var/cache/aecnn"]
EXPOSE 8765
USER 10001:10001
STOPSIGNAL SIGTERM
# An engine's build takes minutes; /healthz answers meanwhile.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "/usr/local/lib/aecnn/healthcheck.py"]
ENTRYPOINT ["aecnn-deploy"]
CMD ["serve-edge", "/bundle", "--host", "0.0.0.0", "--port", "8765", "--log-format", "json"]

FROM ${PYTHON_IMAGE} AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="aecnn-edge" \
      org.opencontainers.image.description="AECNN edge: the tails of a bundle on ONNX Runtime, behind one port" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Numbers, not names: what is mounted is of this user, whatever the host calls it.
RUN groupadd --gid 10001 aecnn \
    && useradd --no-log-init --uid 10001 --gid 10001 --home-dir /var/lib/aecnn --shell /usr/sbin/nologin aecnn \
    && install -d -o 10001 -g 10001 /var/lib/aecnn /var/cache/aecnn /bundle
COPY --from=cpu-packages /usr/local/lib/aecnn /usr/local/lib/aecnn
COPY deploy/docker/healthcheck.py /usr/local/lib/aecnn/healthcheck.py
ENV PATH=/usr/local/lib/aecnn/bin:$PATH \
    HOME=/var/lib/aecnn \
    XDG_CACHE_HOME=/var/cache/aecnn \
    PYTHONUNBUFFERED=1 \
    AECNN_HEALTH_URL=http://127.0.0.1:8765/healthz
WORKDIR /var/lib/aecnn
VOLUME ["/bundle", "/var/cache/aecnn"]
EXPOSE 8765
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "/usr/local/lib/aecnn/healthcheck.py"]
# No shell and no init between: SIGTERM reaches the program, which drains and exits 0. It starts no process of its own
# that would have to be reaped.
ENTRYPOINT ["aecnn-deploy"]
CMD ["serve-edge", "/bundle", "--host", "0.0.0.0", "--port", "8765", "--log-format", "json", "--no-build"]
