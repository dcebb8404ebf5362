#!/bin/sh
# Moves a relay from its SQLite file to PostgreSQL, and adds machines to it (docs/deploy.md, "Several machines").
#   On the machine whose relay runs, as root:   sh to-postgresql.sh move /etc/relayd/state_url
#   Then on each machine that joins it:         sh to-postgresql.sh join /etc/relayd/state_url
# The file has the URL of the database. Without systemd, say in CONFIG, STOP and START what to use instead.
set -eu
case "${1:-}" in
  move | join) ;;
  *) sed -n '2,5s/^# //p' "$0" >&2; exit 2 ;;
esac
url_file=$(realpath "$2")
config=${CONFIG:-/etc/relayd/relayd.toml}
stop=${STOP:-systemctl stop relayd.socket relayd.service}
start=${START:-systemctl start relayd.socket relayd.service}
before=$config.before-postgresql

if grep -Eq '^[[:space:]]*url(_file)?[[:space:]]*=' "$config"; then
  echo "$config names a database already; nothing is changed. Was a move cut off? Then undo it: mv $before $config" >&2
  exit 1
fi
# Whatever fails from here on: the relay runs as before. The SQLite file is never changed.
cp -p "$config" "$before"
trap 'mv "$before" "$config"; sh -c "$start"; echo "Not moved; relayd runs as before." >&2; exit 1' EXIT
trap 'exit 1' HUP INT TERM

if grep -q '^\[state\]' "$config"; then
  sed -i "s|^\[state\].*|&\nurl_file = \"$url_file\"|" "$config"
else
  printf '\n[state]\nurl_file = "%s"\n' "$url_file" >> "$config"
fi
# The configuration is good, and the database answers and lets relayd make its tables.
relayd check --config "$config" > /dev/null

sh -c "$stop"
if [ "$1" = move ]; then
  relayd migrate-state --config "$config" - < "$url_file"
fi
sh -c "$start"
trap - EXIT
relayd status
