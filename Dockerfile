# Packs a binary that has been built before. This file compiles nothing:
#
#   cargo build --profile dist --locked
#   docker build -t registry.example.com/team/vramguard:0.1.0 .
#
# The binary is linked against glibc, so build it on a system whose glibc is not newer than that of the base image:
# Debian 12 or older for this one. The binary contains TLS, and needs only libc and libgcc.
#
# No image has been built from this file yet, because no container engine was available when it was written.
FROM debian:12-slim

COPY target/dist/vramguard /usr/local/bin/vramguard

# A numeric user, because the kubelet cannot check runAsNonRoot against a name.
USER 65532:65532
EXPOSE 8443 8080
ENTRYPOINT ["/usr/local/bin/vramguard"]
CMD ["serve"]
