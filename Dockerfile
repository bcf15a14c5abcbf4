# Packs a binary that was built before; it compiles nothing:
#
#   cargo build --release --locked
#   docker build -t registry.example.com/team/vramguard:0.1.0 .
#
# The binary is linked against glibc, so build it on a system whose glibc is not newer than the base image's: Debian 12 or
# older for this one. TLS is in the binary; nothing but libc and libgcc is needed.
#
# This file has not been built yet: there was no container engine where it was written.
FROM debian:12-slim

COPY target/release/vramguard /usr/local/bin/vramguard

# A number, because the kubelet can check runAsNonRoot only against a number.
USER 65532:65532
EXPOSE 8443 8080
ENTRYPOINT ["/usr/local/bin/vramguard"]
CMD ["serve"]
