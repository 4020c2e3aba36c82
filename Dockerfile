# The router alone, for `docker build .` after `python3 build_zipapp.py`. Workers run elsewhere.
FROM python:3.13-slim
COPY dist/router.pyz /usr/local/lib/router.pyz
RUN useradd --system --uid 10001 --create-home router && mkdir /state && chown router /state
USER 10001
VOLUME /state
EXPOSE 30081
# As process 1 the router passes signals on and waits for orphans.
ENTRYPOINT ["python3", "/usr/local/lib/router.pyz"]
CMD ["--host", "0.0.0.0", "--port", "30081", "--state-dir", "/state"]
