#!/bin/sh
# Ask a relay from the shell, with curl and jq: RELAY_KEY=... ./chat.sh "Say hi"
# RELAY is its address, RELAY_KEY a key that its owner gave you. Ctrl-C stops the model too.
set -eu
relay=${RELAY:-http://127.0.0.1:3666}
key=${RELAY_KEY:?set it to your key}

# The key goes in on a descriptor, where no list of processes shows it.
jq -nc --arg text "${1:-Say hi}" '{messages: [{role: "user", content: $text}]}' |
  curl -sS --no-buffer --data-binary @- --header @/dev/fd/3 "$relay/chat" 3<<HEADER |
Authorization: Bearer $key
HEADER
  jq --unbuffered -nj '
    def fail: "\n\(.)\n" | halt_error(1);
    (inputs | if .error then .content | fail elif .done then "\n", halt else .content end),
    ("the connection ended before the answer did" | fail)'
