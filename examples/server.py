"""Labels of pictures by HTTP, each request in a thread of its own, all with one model. Needs edgeadv[ort], and no
PyTorch.

python examples/server.py model.edgeadv 8081
curl --data-binary @photo.jpg http://127.0.0.1:8081/
"""

import io
import json
import sys
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from edgeadv_runtime import Classifier, EdgeAdvError

MOST_BYTES, Image.MAX_IMAGE_PIXELS = 20 << 20, 25_000_000  # Pillow refuses twice as many pixels


class Handler(BaseHTTPRequestHandler):
    classifier: Classifier

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or not 0 < int(length) <= MOST_BYTES:
            return self.send_error(411 if length in ("", "0") else 413)
        try:
            picture = Image.open(io.BytesIO(self.rfile.read(int(length))), formats=("JPEG", "PNG", "WEBP"))
            picture.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return self.send_error(400, "not a JPEG, PNG or WebP picture of a sensible size")
        try:
            content = json.dumps([asdict(label) for label in self.classifier.classify(picture)]).encode()
        except EdgeAdvError as error:
            return self.send_error(500, str(error))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    try:
        with Classifier.open(sys.argv[1], threads=1) as Handler.classifier:  # classify is safe from several threads
            server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
            print(f"listening at http://127.0.0.1:{server.server_address[1]}/", flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(130)
    except (EdgeAdvError, IndexError, ValueError, OSError) as error:
        print(f"server.py BUNDLE PORT: {error}", file=sys.stderr)
        sys.exit(2)
