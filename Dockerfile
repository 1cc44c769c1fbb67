# Onetrip as a server in a container.
#
#   docker build -t onetrip .
#   docker volume create onetrip-data
#   docker run --rm -v onetrip-data:/data onetrip keys create --role admin        # prints a token, once
#   docker run -d --name onetrip -p 127.0.0.1:8400:8400 -v onetrip-data:/data --stop-timeout 60 \
#       --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined \
#       onetrip
#
# Built by buildah 1.28 and run by podman 4.3 with runc, as below (docs/serve.md says how, and what was not shown): level `strict`, as uid 10001, with no
# capability; without the options a run is refused, and the refusal names them.
#
# Level `strict` needs namespaces, which an engine's own filters forbid; the three options take away what is in the way, and nothing else:
#   seccomp=unconfined      unshare, mount and setns are not allowed by the engine's default filter without CAP_SYS_ADMIN
#   apparmor=unconfined     the default profile forbids mount (Debian, Ubuntu)
#   systempaths=unconfined  the kernel lets a process mount a /proc of its own only where none of /proc is masked
# The container stays unprivileged: it needs no --privileged and no capability, and runs as an ordinary user. Programs in it are still held
# by Onetrip's own filter, namespaces and Landlock. On Ubuntu 24.04 the host must also allow user namespaces to unprivileged users
# (sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile). `docker exec onetrip onetrip doctor` says what holds.
# Without the options the server starts, and refuses runs with the reason, unless a request lowers its floor to `reduced`.
# Memory and CPU are sampled where no control group is delegated to the container; --memory and --cpus bound the container as a whole.

FROM python:3.11-slim-bookworm AS build
WORKDIR /opt/onetrip
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN python -m venv /opt/onetrip/venv \
 && umask 022 \
 && venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[serve,otel]' \
 && mkdir -p venv/share/onetrip \
 && venv/bin/onetrip env build default

FROM python:3.11-slim-bookworm
COPY --from=build /opt/onetrip/venv /opt/onetrip/venv
RUN useradd --uid 10001 --create-home --home-dir /var/lib/onetrip onetrip \
 && install -d -o onetrip -g onetrip -m 0700 /data
ENV PATH=/opt/onetrip/venv/bin:$PATH ONETRIP_DATA=/data PYTHONUNBUFFERED=1
USER onetrip
VOLUME /data
EXPOSE 8400
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8400/readyz', timeout=2)"]
ENTRYPOINT ["onetrip"]
CMD ["serve", "--host", "0.0.0.0"]
