# Two images: `waver` (the server; needs no GPU) and `vllm` (the official vLLM image with Waver's logits processor).
# Each base is pinned by its tag. To pin the very bytes, give the tag with its digest as a build argument:
# --build-arg PYTHON_IMAGE=python:3.11.15-slim-trixie@sha256:...
ARG PYTHON_IMAGE=python:3.11.15-slim-trixie
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0


FROM ${PYTHON_IMAGE} AS wheel
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml uv.lock ./
COPY requirements requirements
RUN python requirements/install.py --only build
COPY . .
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .


FROM ${PYTHON_IMAGE} AS packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore UV_NO_CACHE=1
WORKDIR /src
COPY pyproject.toml uv.lock ./
COPY requirements requirements
# uv outside of what goes into the image.
RUN python -m pip install --require-hashes --requirement requirements/uv.txt && python -m venv /opt/waver
# What Waver needs, as locked, without Waver: a change of the code leaves this layer alone.
RUN TORCH_INDEX="${TORCH_INDEX}" /opt/waver/bin/python requirements/install.py retrieval --torch cpu --no-project \
    && /opt/waver/bin/python -c "import torch; assert torch.version.cuda is None, 'this torch is a CUDA build'"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    /opt/waver/bin/pip install --no-deps /wheels/waver_llm-*.whl && /opt/waver/bin/pip check


FROM ${PYTHON_IMAGE} AS waver
# The home exists for what is fetched from a model hub, and for collections of documents. A new volume that is mounted
# there takes over its owner.
RUN groupadd --gid 10001 waver \
    && useradd --uid 10001 --gid waver --create-home --shell /usr/sbin/nologin waver \
    && install --directory --owner waver --group waver /home/waver/.cache /home/waver/data
COPY --from=packages /opt/waver /opt/waver
ENV PATH=/opt/waver/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    WAVER_SERVER__HOST=0.0.0.0
USER 10001:10001
WORKDIR /home/waver
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["waver"]
CMD ["serve"]


FROM ${VLLM_IMAGE} AS vllm
# Without dependencies: everything that the processor imports is there, and vLLM's own torch has to stay.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    uv pip install --system --no-cache --no-deps /wheels/waver_llm-*.whl \
    && python3 -c "from importlib.metadata import distribution; \
assert distribution('waver-llm').entry_points.select(group='vllm.logits_processors'), 'the wheel has no plugin'"
RUN groupadd --gid 10001 waver \
    && useradd --uid 10001 --gid waver --create-home --shell /usr/sbin/nologin waver \
    && install --directory --owner waver --group waver /home/waver/.cache
ENV HOME=/home/waver \
    TRITON_CACHE_DIR=/home/waver/.cache/triton
USER 10001:10001
WORKDIR /home/waver
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["vllm", "serve"]
