# A Debian machine in a folder, with systemd and QEMU, for the scripts that source this.
# Takes root and the packages debootstrap and systemd-container.
# shellcheck shell=bash
source .ci/root.sh

release=${RELEASE:-bookworm}

# make_machine DIRECTORY PACKAGE...
#
# Unpack the release that $RELEASE names (about 1 GB, some minutes, once: it is used again), with
# this tree in /src.
make_machine() {
  root=$1
  shift
  make_root "$release" "$root" systemd systemd-sysv dbus python3 qemu-system-x86 "$@"
  rm -rf "$root/src"
  mkdir "$root/src"
  cp -r config panicd pyproject.toml README.md LICENSE share systemd tests "$root/src"
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
