# Answers with what a container sees. `READY_DELAY` and `LISTEN_DELAY` are seconds from its start. With `PORT` 0 it tells
# its port in `PORT_FILE`, where `/forward` finds it.
import http.server, json, os, pathlib, stat, sys, threading, time, urllib.parse, urllib.request

began, count, failing = time.monotonic(), 0, False
alone = threading.Lock()


def info():
    return {
        "args": sys.argv[1:],
        "env": dict(os.environ),
        "uid": os.getuid(),
        "euid": os.geteuid(),
        "cwd": os.getcwd(),
        "eof": sys.stdin.read() == "",
    }


def seen(path):
    mode = os.lstat(path).st_mode
    target = os.readlink(path) if stat.S_ISLNK(mode) else None
    return {"mode": stat.filemode(os.stat(path).st_mode), "target": target, "writable": os.access(path, os.W_OK)}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count, failing
        url = urllib.parse.urlsplit(self.path)
        status, text = 200, ""
        try:
            if url.path == "/healthz":
                count += 1
                if failing or time.monotonic() - began < float(os.environ.get("READY_DELAY", "0")):
                    status = 500
            elif url.path == "/start-failing":
                failing = True
            elif url.path == "/count":
                text = str(count)
            elif url.path == "/info":
                text = json.dumps(info())
            elif url.path == "/headers":
                text = json.dumps({name.lower(): self.headers.get_all(name) for name in self.headers.keys()})
            elif url.path == "/file":
                text = json.dumps(seen(url.query))
            elif url.path == "/alone":
                if not alone.acquire(blocking=False):
                    raise RuntimeError("two requests at once")
                time.sleep(0.1)
                alone.release()
                text = "One at a time"
            elif url.path == "/sleep":
                first, then = (float(seconds) for seconds in url.query.split(","))
                time.sleep(first)
                self.send_response(200)
                self.send_header("Content-Length", "6")
                self.end_headers()
                self.wfile.write(b"S")
                time.sleep(then)
                self.wfile.write(b"lept.")
                return
            elif url.path == "/forward":
                port = pathlib.Path(os.environ["PORT_FILE"]).read_text()
                text = urllib.request.urlopen(f"http://127.0.0.1:{port}/name").read().decode()
            elif url.path == "/name":
                text = os.environ.get("NAME", "")
            else:
                text = pathlib.Path(url.path).read_text()
        except Exception as error:
            status, text = 404, str(error)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


time.sleep(float(os.environ.get("LISTEN_DELAY", "0")))
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
if os.environ["PORT"] == "0":
    pathlib.Path(os.environ["PORT_FILE"]).write_text(str(server.server_address[1]))
server.serve_forever()
