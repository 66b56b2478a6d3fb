# docker build -t compressor .
# docker run --rm -v "$PWD:/data" compressor quantize model.safetensors -o small.safetensors --bits 4
FROM python:3.12-slim AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY compressor compressor
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[entropy]" && rm -rf /wheels \
    && useradd --create-home --uid 1000 compressor
USER 1000
WORKDIR /data
ENTRYPOINT ["compressor"]
