# A Debian 12 machine in a folder, with systemd and QEMU, for the scripts that source this.
# Takes root and the packages debootstrap and systemd-container.
# shellcheck shell=bash

# make_machine DIRECTORY PACKAGE...
#
# Unpack it (about 1 GB, some minutes, once: it is used again), with this tree in /src.
make_machine() {
  root=$1
  shift
  if [[ ! -e $root/.complete ]]; then
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3,qemu-system-x86 \
      bookworm "$root" >/dev/null || { echo "remove $root and try again" >&2; exit 1; }
    # By apt-get, which finds its way where debootstrap's own way with dependencies ends.
    DEBIAN_FRONTEND=noninteractive chroot "$root" \
      apt-get -qq install -y --no-install-recommends "$@" </dev/null &>"$root.log" \
      || { tail -n 30 "$root.log" >&2; exit 1; }
    touch "$root/.complete"
  fi
  rm -rf "$root/src"
  mkdir "$root/src"
  cp -r config panicd pyproject.toml README.md LICENSE share systemd tests "$root/src"
  cp /etc/resolv.conf "$root/etc/resolv.conf"
}

# boot_machine: boot what make_machine made, without a network. It is powered off when the script ends.
boot_machine() {
  # The unified hierarchy, which later systemds insist on where the host has the old one.
  UNIFIED_CGROUP_HIERARCHY=1 systemd-nspawn --boot --directory="$root" --register=no --keep-unit \
    --private-network --console=read-only </dev/null >"$root.log" 2>&1 &
  machine=$!
  leader=""
  trap end_machine EXIT
  for _ in {1..300}; do
    leader=$(pgrep -P "$machine" || true)
    [[ -z $leader ]] || ! enter systemctl is-system-running --wait >/dev/null 2>&1 || break
    kill -0 "$machine" 2>/dev/null || { echo "the machine did not boot: $root.log" >&2; exit 1; }
    sleep 0.2
  done
}

end_machine() {
  [[ -z $leader ]] || kill -s RTMIN+4 "$leader" 2>/dev/null || true # poweroff.target: systemd(1)
  wait "$machine" || true
}

# enter COMMAND...: run it on the booted machine.
enter() {
  nsenter --target "$leader" --all env --chdir=/ -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}
