# syntax=docker/dockerfile:1.7
# A bundle as an image, for an init container that copies it. The context is the bundle's folder:
#
#   docker build -f deploy/docker/bundle.Dockerfile -t registry.example/aecnn-bundle:BUNDLE_ID /path/to/bundle

ARG BUSYBOX_IMAGE=busybox:1.37.0-musl
FROM ${BUSYBOX_IMAGE}
LABEL org.opencontainers.image.title="aecnn-bundle"
COPY --chown=10001:10001 . /bundle
USER 10001:10001
CMD ["cp", "-a", "/bundle/.", "/target/"]
