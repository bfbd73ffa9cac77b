# One image for every command: jobs, gate and service.
#
#   docker build -t trialgate .
#   docker run --rm trialgate python -m ray_jobs.search --help
#   docker run --rm --network host --shm-size 2g -e MLFLOW_TRACKING_URI=http://127.0.0.1:5000 trialgate
#
# The last serves configs/serve.yaml, which listens on 127.0.0.1 only: hence the host's network.
# Which build of torch goes in (CPU or CUDA) is pip's index's choice: --build-arg PIP_EXTRA_INDEX_URL=...
ARG PYTHON_VERSION=3.11.14

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/source/constraints.txt
RUN python -m venv /opt/trialgate
ENV PATH=/opt/trialgate/bin:$PATH
WORKDIR /source
# The dependencies change seldom: their layers stand before the project's own files.
COPY constraints.txt ./
RUN pip install torch
COPY pyproject.toml LICENSE README.md ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print('\n'.join(project['dependencies'] + project['optional-dependencies']['s3']))" > requirements.txt \
    && pip install -r requirements.txt
COPY configs ./configs
COPY gate ./gate
COPY ray_jobs ./ray_jobs
COPY serve_app ./serve_app
RUN pip install --no-deps .

FROM python:${PYTHON_VERSION}-slim-bookworm
RUN groupadd --gid 1000 trialgate \
    && useradd --uid 1000 --gid trialgate --create-home trialgate \
    && install -d -o trialgate -g trialgate /app
COPY --from=build /opt/trialgate /opt/trialgate
COPY --chown=trialgate:trialgate configs /app/configs
ENV PATH=/opt/trialgate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /app
USER trialgate
EXPOSE 8000
CMD ["sh", "-c", "set -a && . configs/fast_path.env && set +a && exec serve run configs/serve.yaml"]
