# syntax=docker/dockerfile:1.7
# A device: the heads of a bundle on a 64-bit Raspberry Pi (or any amd64 machine). Nothing in it is compiled.
#
#   docker buildx build --platform linux/arm64 -f deploy/docker/device.Dockerfile -t aecnn-device --load .
#
# From the repository's root. Cameras, and what was tried: docs/containers.md

ARG PYTHON_IMAGE=python:3.13.7-slim-trixie

# The wheel is the same for every processor: built on the builder's own, not under emulation.
FROM --platform=$BUILDPLATFORM ${PYTHON_IMAGE} AS wheel
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

FROM ${PYTHON_IMAGE} AS packages
ENV PIP_CACHE_DIR=/var/cache/pip
COPY deploy/docker/locks/device.txt /locks/
RUN --mount=type=cache,target=/var/cache/pip --mount=type=bind,from=wheel,source=/dist,target=/dist \
    python3 -m venv --without-pip /usr/local/lib/aecnn \
    && python3 -m pip --python /usr/local/lib/aecnn/bin/python install --no-compile --only-binary :all: \
       --require-hashes --requirement /locks/device.txt \
    && python3 -m pip --python /usr/local/lib/aecnn/bin/python install --no-compile --no-deps --no-index \
       "$(echo /dist/aecnn_deploy-*.whl)[device,video]" \
    && python3 -m pip --python /usr/local/lib/aecnn/bin/python check \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /usr/local/lib/aecnn/lib

FROM ${PYTHON_IMAGE} AS device
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="aecnn-device" \
      org.opencontainers.image.description="AECNN device: the heads of a bundle, and a source of frames" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# In the group "video", whose number is the same in Debian and in Raspberry Pi OS: it may open /dev/video*.
RUN groupadd --gid 10001 aecnn \
    && useradd --no-log-init --uid 10001 --gid 10001 --groups video --home-dir /var/lib/aecnn \
       --shell /usr/sbin/nologin aecnn \
    && install -d -o 10001 -g 10001 /var/lib/aecnn /var/cache/aecnn /bundle
COPY --from=packages /usr/local/lib/aecnn /usr/local/lib/aecnn
ENV PATH=/usr/local/lib/aecnn/bin:$PATH \
    HOME=/var/lib/aecnn \
    XDG_CACHE_HOME=/var/cache/aecnn \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/aecnn
VOLUME ["/bundle", "/var/cache/aecnn"]
USER 10001
STOPSIGNAL SIGTERM
# It listens on nothing: that it works is seen on the edge's status page, and in its exit status.
HEALTHCHECK NONE
ENTRYPOINT ["aecnn-deploy"]
# Where the edge is and what the source is, nobody can guess: the command is to be given.
CMD ["run-device", "--help"]
