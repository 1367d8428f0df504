# The coordinator, without torch. Build from the repository's root:
#   docker build -f deploy/images/coordinator.Dockerfile -t dure-coordinator .
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md ./
COPY core core
COPY coordinator coordinator
COPY participant participant
COPY protos protos
COPY demo demo
RUN python -m venv /opt/dure \
    && /opt/dure/bin/pip install --no-cache-dir ".[coordinator,postgres]"

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
EXPOSE 7443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s \
    CMD ["dure", "coordinator", "status", "--json", "--dir", "/var/lib/dure/coordinator"]
ENTRYPOINT ["dure"]
CMD ["coordinator", "serve", "--dir", "/var/lib/dure/coordinator"]
