# One image for everything: Ray's head and workers, the jobs, the gate, the service and the MLflow server.
#
#   docker build -t trialgate .
#   docker run --rm trialgate python -m ray_jobs.search --help
#   docker run --rm --init --shm-size 2g -p 127.0.0.1:8000:8000 -e MLFLOW_TRACKING_URI=http://MLFLOW_HOST:5000 trialgate
#   docker compose up --build --detach --wait          the whole installation: docs/deploying.md
#
# Which build of torch goes in is its index's choice. TORCH_BUILD says which one it must be (cpu or cuda; unset: any),
# and the build fails where another came. For a smaller image without CUDA, with PyTorch's index of CPU builds as URL:
#
#   docker build -t trialgate:cpu --build-arg TORCH_BUILD=cpu --build-arg TORCH_INDEX_URL=URL .
#
# An index that wants a password is given as a pip.conf, which is in no layer: --secret id=pip.conf,src=pip.conf

# The digest is that of the tag's multi-architecture index.
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS base
ENV PATH=/opt/trialgate/bin:$PATH

FROM base AS build
ARG TORCH_BUILD
ARG TORCH_INDEX_URL
ENV PIP_CONSTRAINT=/source/constraints.txt \
    PIP_CONFIG_FILE=/run/secrets/pip.conf \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/trialgate
WORKDIR /source
# The dependencies change seldom: they are installed before the project's own files are there.
COPY constraints.txt ./
# PIP_CONSTRAINT pins what hadolint misses here.
# hadolint ignore=DL3013
RUN --mount=type=secret,id=pip.conf \
    python -m pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
RUN TORCH_BUILD="$TORCH_BUILD" python -c "import os, torch; wanted = os.environ['TORCH_BUILD']; \
found = 'cuda' if torch.version.cuda else 'cpu'; \
assert wanted in ('', found), f'TORCH_BUILD is {wanted}, and the index gave a {found} build'"
COPY pyproject.toml ./
RUN --mount=type=secret,id=pip.conf \
    python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
print('\n'.join(project['dependencies'] + extras['s3'] + extras['postgresql']))" > requirements.txt \
    && python -m pip install -r requirements.txt
# What only building against torch and testing it take: 145 MB.
RUN rm -rf /opt/trialgate/lib/python3*/site-packages/torch/include /opt/trialgate/lib/python3*/site-packages/torch/test
COPY LICENSE README.md ./
COPY configs ./configs
COPY gate ./gate
COPY ray_jobs ./ray_jobs
COPY serve_app ./serve_app
RUN --mount=type=secret,id=pip.conf \
    python -m pip wheel --no-deps --wheel-dir /wheels .

FROM base
# A login shell (Kubernetes operators may start Ray in one) sets PATH anew, from /etc/profile: $PATH is for that shell.
# hadolint ignore=SC2016
RUN groupadd --gid 1000 trialgate \
    && useradd --uid 1000 --gid trialgate --create-home trialgate \
    && install -d -o trialgate -g trialgate /app \
    && echo 'PATH=/opt/trialgate/bin:$PATH' > /etc/profile.d/trialgate.sh
# Two layers: the dependencies, large, which change with constraints.txt only, and this project, which is small.
COPY --from=build /opt/trialgate /opt/trialgate
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
COPY configs/*.yaml configs/*.env /app/configs/
ENV PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /app
USER 1000:1000
EXPOSE 8000
# Ctrl-C's signal: the service drains on it, and `ray start --block` stops its processes.
STOPSIGNAL SIGINT
# Of the service, alive; containers that run something else say --no-healthcheck or have one of their own.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["sh", "-c", "set -a && . configs/fast_path.env && set +a && exec serve run configs/serve_all_interfaces.yaml"]
