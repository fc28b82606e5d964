#!/usr/bin/env bash
# Opens pages in a browser: each must load, in light and in dark, without a message on the console, without asking the
# network for anything (a page of `bayesteach view`: anything but its own server), and not be blank. What the script of a page
# of `view` asks for must have come: drawings, and no complaint.
#
#     scripts/check-pages.sh runs/quickstart/report.html …
#     scripts/check-pages.sh 'http://127.0.0.1:6007/belief/0#seed=1&evidence=eig&answers=4.0'
#
# Needs chromium (or chrome) and python3; says "not run" and exits with 0 where there is none.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: $0 PAGE.html|ADDRESS …" >&2; exit 2; }

browser=""
for name in chromium chromium-browser google-chrome chrome; do
    if command -v "$name" >/dev/null; then browser=$name; break; fi
done
if [ -z "$browser" ] || ! command -v python3 >/dev/null; then
    echo "pages: not run: there is no chromium or no python3"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Loads address $1 with a profile of its own; leaves $work/{shot.png,console,net.json,dom}. No name resolves but this machine's own address.
load() {
    local address=$1; shift
    rm -rf "$work"/{profile,shot.png,console,net.json,dom}
    timeout 90 "$browser" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars \
        --user-data-dir="$work/profile" --no-first-run --disable-background-networking --disable-component-update \
        --disable-sync --disable-default-apps --disable-features=NetworkTimeServiceQuerying,AutofillServerCommunication --host-resolver-rules='MAP * ~NOTFOUND, EXCLUDE 127.0.0.1' \
        --enable-logging=stderr --log-net-log="$work/net.json" --window-size=1000,1300 \
        --virtual-time-budget=6000 "$@" "$address" >"$work/dom" 2>"$work/console" || true
}

# The addresses that the page asked for, besides files and data. What the browser asks for on its own account (updates, sign-in)
# has no origin that started it, or one of its own pages, and comes at any time.
addresses() {
    python3 - "$1" <<'PYTHON'
import json, sys
text = open(sys.argv[1]).read()
try:
    log = json.loads(text)
except ValueError:  # cut off at the end
    log = json.loads(text.rstrip().rstrip(",") + "]}")
start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
found = set()
for event in log["events"]:
    request = event.get("params", {})
    if event["type"] != start or request.get("initiator", "").startswith(("not an origin", "chrome")):
        continue
    if request.get("url", "").startswith(("http:", "https:", "ws:", "wss:", "ftp:")):
        found.add(request["url"].split("?")[0])
print("\n".join(sorted(found)))
PYTHON
}

# Whether a screenshot shows more than a few colours, and how many.
colours() {
    python3 - "$1" <<'PYTHON'
import struct, sys, zlib
data = open(sys.argv[1], "rb").read()
assert data[:8] == b"\x89PNG\r\n\x1a\n"
width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
size = {2: 3, 6: 4}[kind]
packed, at = b"", 8
while at < len(data):
    length, name = struct.unpack(">I4s", data[at:at + 8])
    if name == b"IDAT":
        packed += data[at + 8:at + 8 + length]
    at += 12 + length
raw, row, seen = zlib.decompress(packed), bytearray(width * size), set()
for y in range(height):
    start = y * (width * size + 1)
    filtered, line = raw[start], bytearray(raw[start + 1:start + 1 + width * size])
    for i in range(len(line)):
        left = line[i - size] if i >= size else 0
        up, corner = row[i], row[i - size] if i >= size else 0
        if filtered == 1:
            line[i] = (line[i] + left) & 255
        elif filtered == 2:
            line[i] = (line[i] + up) & 255
        elif filtered == 3:
            line[i] = (line[i] + (left + up) // 2) & 255
        elif filtered == 4:
            p = left + up - corner
            a, b, c = abs(p - left), abs(p - up), abs(p - corner)
            line[i] = (line[i] + (left if a <= b and a <= c else up if b <= c else corner)) & 255
    row = line
    seen.update(bytes(line[x * size:x * size + 3]) for x in range(0, width, 3))
print(len(seen))
PYTHON
}

# A page that does ask must be found out, or the check means nothing.
echo '<img src="https://example.org/asked.png">' >"$work/asks.html"
load "file://$work/asks.html" --screenshot="$work/shot.png"
addresses "$work/net.json" | grep -qx https://example.org/asked.png || {
    echo "pages: $browser does not log what a page asks for as this script reads it: $(addresses "$work/net.json")"
    exit 1
}

failed=0
complain() { echo "pages: $*"; failed=1; }
for page in "$@"; do
    case $page in
        http://127.0.0.1:*) address=$page; own=$(cut -d/ -f1-3 <<<"$page") ;;
        *)
            [ -s "$page" ] || { complain "$page is not there"; continue; }
            address=file://$(realpath "$page") own="nothing" ;;
    esac
    for theme in light dark; do
        flags=()
        [ $theme = dark ] && flags=(--force-dark-mode)
        load "$address" --screenshot="$work/shot.png" "${flags[@]}"
        if [ ! -s "$work/shot.png" ]; then complain "$page ($theme) did not load"; continue; fi
        if grep -q ":CONSOLE" "$work/console"; then
            complain "$page ($theme) wrote to the console: $(grep -m 3 ":CONSOLE" "$work/console")"
        fi
        asked=$(addresses "$work/net.json" | grep -v "^$own/" || true)
        [ -z "$asked" ] || complain "$page ($theme) asked the network for $asked"
        count=$(colours "$work/shot.png")
        [ "$count" -ge 20 ] || complain "$page ($theme) is blank: $count colours"
        if [ "$own" != nothing ] && [ $theme = light ]; then
            load "$address" --dump-dom
            drawings=$(grep -o "<svg" "$work/dom" | wc -l)
            [ "$drawings" -ge 5 ] || complain "$page shows $drawings drawings"
            ! grep -q 'class="wrong"' "$work/dom" || complain "$page complains: $(grep -m 1 'class="wrong"' "$work/dom")"
        fi
        [ $failed -eq 1 ] || echo "pages: $page ($theme): loaded, silent, no request, $count colours"
    done
done
exit $failed
