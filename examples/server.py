"""Classify pictures that come by HTTP, each request in a thread of its own, all with one model. Needs edgeadv[ort], and no PyTorch.

python examples/server.py model.edgeadv 8081
curl --data-binary @photo.jpg http://127.0.0.1:8081/
"""

import io
import json
import sys
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from edgeadv_runtime import Classifier
from edgeadv_runtime.errors import BackendError, InputError

MOST_BYTES, MOST_PIXELS = 20 << 20, 50_000_000


class Handler(BaseHTTPRequestHandler):
    classifier: Classifier

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() else 0
        if not 0 < size <= MOST_BYTES:
            return self.send_error(413 if size else 411)
        try:
            picture = Image.open(io.BytesIO(self.rfile.read(size)), formats=("JPEG", "PNG", "WEBP"))
            if picture.width * picture.height > MOST_PIXELS:
                return self.send_error(413, "too many pixels")
            labels = self.classifier.classify(picture)  # safe from several threads
        except BackendError as error:
            return self.send_error(500, str(error))
        except (InputError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return self.send_error(400, f"not a readable JPEG, PNG or WebP picture ({type(error).__name__})")
        content = json.dumps([asdict(label) for label in labels]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    with Classifier.open(sys.argv[1], threads=1) as Handler.classifier:
        server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
        print(f"listening at http://127.0.0.1:{server.server_address[1]}/", flush=True)
        server.serve_forever()
