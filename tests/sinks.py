"""What news can be delivered to, for tests: a web server, and a mail server that insists on STARTTLS and a password.

    python sinks.py DIRECTORY

writes `ports` (HTTP, SMTP, HTTPS) into the directory when both listen, the authority's certificate as `ca.pem`, and every
delivery as a line of JSON into `deliveries`. A file `refuse` in the directory makes both say no.
"""

import datetime
import email
import email.policy
import http.server
import ipaddress
import json
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PLACE = Path(sys.argv[1])
LOCK = threading.Lock()


def note(**delivery):
    with LOCK, open(PLACE / "deliveries", "a") as file:
        file.write(json.dumps(delivery) + "\n")


def refuses():
    return (PLACE / "refuse").exists()


class Web(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(body=json.loads(body))

    def do_GET(self):
        self.answer()

    def answer(self, **what):
        if refuses():
            self.send_error(503)
            return
        note(way="http", method=self.command, path=self.path, **what)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Mailbox:
    async def handle_DATA(self, server, session, envelope):
        if refuses():
            return "451 not now"
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        note(
            way="mail",
            sender=envelope.mail_from,
            to=envelope.rcpt_tos,
            subject=str(mail["Subject"]),
            text=mail.get_content(),
            encrypted=session.ssl is not None,
        )
        return "250 taken"


def authenticate(server, session, envelope, mechanism, data):
    return AuthResult(success=(data.login, data.password) == (b"vsync", b"let me in"))


def certificate():
    """A certificate for localhost that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (PLACE / "ca.pem").write_bytes(made.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (PLACE / "key.pem").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PLACE / "ca.pem", PLACE / "key.pem")
    return context


context = certificate()
web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
secure = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
secure.socket = context.wrap_socket(secure.socket, server_side=True)
for server in (web, secure):
    threading.Thread(target=server.serve_forever, daemon=True).start()
# aiosmtpd cannot be asked which port it was given.
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
mail = Controller(
    Mailbox(),
    hostname="127.0.0.1",
    port=port,
    tls_context=context,
    require_starttls=True,
    authenticator=authenticate,
    auth_required=True,
)
mail.start()
(PLACE / "ports.new").write_text(f"{web.server_port} {port} {secure.server_port}\n")
(PLACE / "ports.new").rename(PLACE / "ports")
while True:
    time.sleep(3600)
