# A Debian of a given release in a folder, for the scripts that source this.
# Takes root and the package debootstrap.
# shellcheck shell=bash

# make_root RELEASE DIRECTORY PACKAGE...
#
# Unpack the release (bookworm, trixie, sid) with the packages. What is there already is used again;
# to begin anew, remove the folder. The bare release is kept beside it, for the next that wants it.
make_root() {
  local release=$1 root=$2 base
  shift 2
  base=$(dirname "$root")/panicd-base-$release
  (
    flock 9 # two may want the same at the same time
    if [[ ! -e $base/.complete ]]; then
      rm -rf "$base"
      debootstrap --variant=minbase "$release" "$base" >"$base.log" 2>&1 \
        || { tail -n 30 "$base.log" >&2; exit 1; }
      touch "$base/.complete"
    fi
    if [[ ! -e $root/.complete ]]; then
      rm -rf "$root"
      cp --archive --reflink=auto "$base" "$root"
      rm "$root/.complete"
    fi
  ) 9>"$base.lock"
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  take_over_settings "$root"
  [[ $* != "$(cat "$root/.complete" 2>/dev/null)" ]] || return 0
  # No service starts: policy-rc.d(8) of invoke-rc.d.
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod 755 "$root/usr/sbin/policy-rc.d"
  in_root "$root" bash -euo pipefail -c '
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends ca-certificates "$@"
    update-ca-certificates' - "$@" </dev/null &>"$root.log" \
    || { tail -n 30 "$root.log" >&2; return 1; }
  rm "$root/usr/sbin/policy-rc.d"
  echo "$*" >"$root/.complete"
}

# How apt and pip fetch on this machine: a site's proxy, its mirror, an authority of its own.
take_over_settings() {
  local root=$1
  apt-config dump Acquire | grep -E '^Acquire::(https?|Check-)' >"$root/etc/apt/apt.conf.d/90site" || true
  [[ ! -e /etc/pip.conf ]] || cp /etc/pip.conf "$root/etc/pip.conf"
  mkdir -p "$root/usr/local/share/ca-certificates"
  cp -r /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates"
}

# in_root DIRECTORY COMMAND...
#
# Run a command in there, with this machine's kernel, devices and network. All that it started ends
# with it, and so do its mounts. Its root is a mount of its own, not a chroot's: within a chroot no
# user namespace can be made (user_namespaces(7)), and mounts can't be set apart.
in_root() {
  local root=$1
  shift
  # shellcheck disable=SC2016 # expanded by the inner shell
  unshare --mount --pid --fork --kill-child bash -euo pipefail -c '
    mount --make-rprivate /
    mount --bind "$0" "$0"
    mount --rbind /dev "$0/dev"
    mount --rbind /sys "$0/sys"
    mount -t proc proc "$0/proc"
    mount -t tmpfs -o mode=755 tmpfs "$0/run"
    mkdir "$0/run/old"
    cd "$0"
    pivot_root . run/old
    umount --lazy /run/old
    rmdir /run/old
    status=0
    env --chdir=/ -i HOME=/root LANG=C.UTF-8 "$@" || status=$?
    exit $status # not exec: this shell is the init, which reaps what has lost its parent
  ' "$root" env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}
