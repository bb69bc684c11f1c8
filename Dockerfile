# A small image: the program, the system's roots, and nothing that could run a script.
#
#   docker build -t causeway .
#   docker run -p 25:25 -v ./etc:/etc/causeway:ro -v causeway-spool:/var/spool/causeway causeway
#
# The user is not root. Port 25 works all the same: container engines let any user of a container bind any port.
FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
RUN cargo build --release --locked --bin causeway && strip target/release/causeway && mkdir /empty

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /build/target/release/causeway /usr/bin/causeway
COPY LICENSE /usr/share/doc/causeway/LICENSE
# Folders that the program writes to belong to its user, also when a fresh volume is mounted over them.
COPY --from=build --chown=65532:65532 --chmod=0700 /empty /var/spool/causeway
COPY --from=build --chown=65532:65532 --chmod=0700 /empty /var/log/causeway
VOLUME ["/var/spool/causeway", "/var/log/causeway"]
EXPOSE 25
HEALTHCHECK --interval=30s --timeout=6s --start-period=10s CMD ["/usr/bin/causeway", "health", "--address", "127.0.0.1:25"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/causeway"]
CMD ["run"]
