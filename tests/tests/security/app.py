# Answers with what it was given at its start, before it opened anything itself.
import http.server, json, os, pathlib, sys


def descriptors():
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            pass  # the descriptor that the list was read by
    return found


def environment():
    entries = pathlib.Path("/proc/self/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


facts = {
    "environment": environment(),
    "descriptors": descriptors(),
    "status": dict(line.split(":\t", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines()),
    "uid": os.getuid(),
    "gid": os.getgid(),
    "groups": os.getgroups(),
    "leads": os.getsid(0) == os.getpid(),
    "eof": sys.stdin.read() == "",
}


def answer(path, headers):
    if path == "/facts":
        return json.dumps(facts)
    if path == "/headers":
        return json.dumps({name.lower(): headers.get_all(name) for name in headers.keys()})
    try:
        os.listdir(path) if os.path.isdir(path) else pathlib.Path(path).read_bytes()
        return "read"
    except OSError as error:
        return type(error).__name__


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = answer(self.path, self.headers).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
