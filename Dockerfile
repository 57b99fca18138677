# The gate in a container of its own: alone, or beside a program whose network it shares (docs/deploy.md).
# Any base with Python 3.12 or newer and its venv will do. pip takes its own variables as build arguments; with
# wheels in wheels/ nothing has to be fetched:
#   docker build --network none --build-arg PIP_NO_INDEX=1 -t box-policy .
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
ARG PIP_CONSTRAINT
ARG PIP_EXTRA_INDEX_URL
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_FIND_LINKS=/wheels PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# The brackets make these optional: a pattern may match nothing, as long as another one does.
COPY LICENSE wheel[s] /wheels/
COPY pyproject.toml constraints.tx[t] /source/
WORKDIR /source
# What it needs comes first, by itself: that layer stays as it is while only the source changes.
RUN python3 -m venv /pip \
    && python3 -m venv --without-pip /opt/box-policy \
    && python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && /pip/bin/pip --python /opt/box-policy/bin/python3 install --no-compile --requirement requirements.txt
COPY README.md LICENSE /source/
COPY box_policy /source/box_policy
# Without what is of no use here: the programs and the web interface of others, a second copy of zstandard for PyPy.
# Compiled now, since the file system is read-only later; not checked against the source at each start.
RUN /pip/bin/pip --python /opt/box-policy/bin/python3 install --no-compile --no-deps . \
    && cd /opt/box-policy \
    && find bin -mindepth 1 ! -name 'python*' ! -name box-policy -exec rm -r {} + \
    && rm -rf lib/python3*/site-packages/mitmproxy/tools/web/static \
        lib/python3*/site-packages/mitmproxy_linux/mitmproxy-linux-redirector \
        lib/python3*/site-packages/zstandard/_cffi.* \
    && find lib -type d -name tests -prune -exec rm -r {} + \
    && bin/python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash lib

FROM ${BASE}
LABEL org.opencontainers.image.title="box-policy" \
    org.opencontainers.image.description="Decides what a sandbox may connect to: by name and address, without decrypting" \
    org.opencontainers.image.licenses="Apache-2.0"
# The base's standard library may come without bytecode. Its pip has no business in a gate, nor have programs that
# give rights to whoever starts them.
RUN python3 -m compileall -q -j 0 -x '/(test|tests|idlelib|tkinter|turtledemo|ensurepip|lib2to3|site-packages|dist-packages)/' \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && rm -rf "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"/pip* /usr/local/bin/pip* \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && mkdir -m 0755 /etc/box-policy \
    && mkdir -m 0700 /run/box-policy \
    && chown 65532:65532 /run/box-policy
COPY --from=build /opt/box-policy /opt/box-policy
ENV PATH=/opt/box-policy/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    BOX_POLICY_FILE=/etc/box-policy/policy.yaml \
    BOX_POLICY_CONTROL=unix:/run/box-policy/control.sock
USER 65532:65532
WORKDIR /
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=2 CMD ["box-policy", "status", "--ready"]
ENTRYPOINT ["box-policy", "gate"]
