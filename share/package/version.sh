# What the packages are called and made of, for the scripts that source this.
# shellcheck shell=bash disable=SC2034 # used by them

version=$(sed -nE 's/^__version__ = "(.+)"$/\1/p' panicd/__init__.py)
maintainer="panicd's maintainers <panicd@packages.invalid>"
# Of the commit, not of the build: see reproducible-builds.org/specs/source-date-epoch.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

# release_number RELEASE: Debian's number of a release. Later ones sort after earlier ones.
release_number() {
  case $1 in
    bookworm) echo 12 ;;
    trixie) echo 13 ;;
    sid) echo 14 ;;
    *) echo "$1: not one of bookworm, trixie, sid" >&2; return 1 ;;
  esac
}

# deb_of RELEASE: where share/package/deb leaves the package for a release.
deb_of() { echo "dist/panicd_$version~deb$(release_number "$1")_$(dpkg --print-architecture).deb"; }

# copy_tree DIRECTORY: the tree as it is here, without what git ignores, all as old as its commit.
copy_tree() {
  git ls-files --cached --others --exclude-standard -z \
    | tar --create --null --files-from=- | tar --extract --no-same-owner --directory="$1"
  find "$1" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
}

# fetch_wheels ROOT TREE PYTHON: have a root's Python download what it needs into TREE/wheels.
fetch_wheels() {
  in_root "$1" bash -euo pipefail -c '
    cd "$1"
    "$2" -m venv /tmp/pip
    /tmp/pip/bin/python -m pip download --quiet --disable-pip-version-check --no-deps \
      --require-hashes --only-binary :all: -r config/requirements.txt -d wheels
    rm -r /tmp/pip' - "$2" "$3"
}
