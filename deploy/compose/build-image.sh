#!/usr/bin/env bash
# Builds a container image out of the release binary, the shared libraries that it is linked with here, the certificates
# of public authorities, and an account without rights. It has no base image: no registry is asked.
#
#   deploy/compose/build-image.sh target/release/holdfast [TAG]
#
# TAG is holdfast:latest unless given. Needs a Docker engine that answers, and root only if the engine asks for it.
set -euo pipefail

case "${1:-}" in
    '' | -*)
        sed -n '2,7s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
binary=$1
tag=${2:-holdfast:latest}
here=$(dirname "$(realpath "$0")")
# The account; the same number as compose.yaml and the volumes use.
id=7470

complain() { echo "build-image: $*" >&2; }
[ -x "$binary" ] || { complain "no such program: $binary (make build)"; exit 2; }
command -v docker >/dev/null || { complain "no docker found (Debian: deploy/install-deps.sh --compose)"; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/rootfs
mkdir -p "$root"/usr/local/bin "$root"/etc/ssl/certs "$root"/var/lib "$root"/tmp
install -m 755 "$binary" "$root/usr/local/bin/holdfast"

# What the loader would open, at the paths where it looks. The name service of glibc before 2.34 is loaded by name and
# is not in the list.
libraries=$(ldd "$binary" | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }')
[ -n "$libraries" ] || ldd "$binary" 2>&1 | grep static >/dev/null || { complain "ldd names no library of $binary"; exit 1; }
for path in $libraries; do
    install -D -m 755 "$(realpath "$path")" "$root$path"
    case "$path" in
        */libc.so.6)
            for name in libnss_files.so.2 libnss_dns.so.2 libresolv.so.2; do
                [ ! -e "${path%/*}/$name" ] || install -D -m 755 "$(realpath "${path%/*}/$name")" "$root${path%/*}/$name"
            done
            ;;
    esac
done

for path in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
    [ ! -e "$path" ] || { install -m 644 "$path" "$root/etc/ssl/certs/ca-certificates.crt" && break; }
done
echo "holdfast:x:$id:$id:Holdfast record store:/var/lib/holdfast:/nonexistent" >"$root/etc/passwd"
echo "holdfast:x:$id:" >"$root/etc/group"
echo "hosts: files dns" >"$root/etc/nsswitch.conf"

# A named volume takes over the owner and mode of the folder that it is mounted on.
mkdir -m 700 "$root/var/lib/holdfast" "$root/var/lib/holdfast-offsite"
chmod 1777 "$root/tmp"
mine=(./var/lib/holdfast ./var/lib/holdfast-offsite)
(
    cd "$root"
    tar --create --file "$work/rootfs.tar" --numeric-owner --owner 0 --group 0 --sort name \
        --exclude ./var/lib/holdfast --exclude ./var/lib/holdfast-offsite .
    tar --append --file "$work/rootfs.tar" --numeric-owner --owner $id --group $id --no-recursion "${mine[@]}"
)
rm -rf "$root"
cp "$here/Dockerfile" "$work/Dockerfile"
docker build --quiet --tag "$tag" "$work" >/dev/null
echo "$tag: $(docker run --rm --network none "$tag" --version), $(($(docker image inspect -f '{{.Size}}' "$tag") >> 20)) MiB"
