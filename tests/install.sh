#!/bin/bash
# Installs the Debian packages named as arguments, those that are missing only. Where it is neither
# root nor has sudo, it prints the one command that is missing and fails.
set -u
missing=()
for p in "$@"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' && continue
    # Node.js may come from elsewhere than Debian, npm with it.
    case $p in nodejs) command -v node >/dev/null && continue ;; npm) command -v npm >/dev/null && continue ;; esac
    missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ]; then sudo=(); elif sudo -n true 2>/dev/null; then sudo=(sudo); else
    echo "quern: packages are missing; as root: apt-get install -y ${missing[*]}" >&2
    exit 1
fi
echo "quern: installing ${missing[*]}" >&2
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/tmp/quern-apt.$$ 2>&1 ||
    { "${sudo[@]}" apt-get update -q >/dev/null 2>&1
      "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/tmp/quern-apt.$$ 2>&1; }
rc=$?
[ $rc -eq 0 ] || tail -20 /tmp/quern-apt.$$ >&2
rm -f /tmp/quern-apt.$$
exit $rc
