# A member's node, with torch. Build from the repository's root:
#   docker build -f deploy/images/participant.Dockerfile -t dure-participant .
# For an accelerator, put its own build of torch 2.13.0 before Dure with --build-arg TORCH=...
FROM python:3.11-slim-bookworm AS build
ARG TORCH=torch==2.13.0
WORKDIR /src
RUN python -m venv /opt/dure \
    && /opt/dure/bin/pip install --no-cache-dir "${TORCH}"
COPY pyproject.toml README.md ./
COPY core core
COPY coordinator coordinator
COPY participant participant
COPY protos protos
COPY demo demo
RUN /opt/dure/bin/pip install --no-cache-dir ".[participant]"

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/dure --create-home dure \
    && chmod 0700 /var/lib/dure
COPY --from=build /opt/dure /opt/dure
ENV PATH=/opt/dure/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1
USER 10001
VOLUME /var/lib/dure
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s \
    CMD ["dure", "node", "status", "--json", "--dir", "/var/lib/dure/node"]
ENTRYPOINT ["dure"]
CMD ["node", "run", "--dir", "/var/lib/dure/node"]
