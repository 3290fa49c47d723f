"""A phone's address book, kept in sync through nothing but what proto/ says.

It shows what a client in another language has to do, and a test drives it against real processes: the code of the
messages is generated from proto/ when it starts, and everything beyond the messages is written out here: which errors
to retry, how digests are computed, how to merge after a conflict, what to send again after the servers lost data.

The book is one JSON file: the records as the server last gave them, tombstones too, and the sync token. Every command
prints one JSON object and exits 0, or says on stderr what it expected and exits 1.
"""

import argparse
import base64
import json
import os
import sys
import time
import uuid

import grpc
from blake3 import blake3
from google.rpc import error_details_pb2, status_pb2

COLLECTION = "contacts"
CONTENT_TYPE = "text/vcard"
# For one call with all its retries, and for one attempt: a node that hangs must not hold up the others.
CALL_SECONDS = 60
ATTEMPT_SECONDS = 3
# Small, so that a few records make several pages.
PAGE_SIZE = 7
# The service takes at most 500 mutations and 4 MiB in a batch.
BATCH_MUTATIONS = 100
BATCH_BYTES = 1 << 20
MESSAGE_BYTES = 8 << 20
BROKEN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


class Unexpected(Exception):
    """Something is not as proto/ promises."""


def expect(what, found, wanted):
    if found != wanted:
        raise Unexpected(f"{what}: expected {wanted!r}, found {found!r}")


def generate(proto, folder):
    """Makes the modules of records.proto and sync.proto in `folder`, unless they are there."""
    if not os.path.exists(os.path.join(folder, "holdfast")):
        import grpc_tools
        from grpc_tools import protoc

        well_known = os.path.join(os.path.dirname(grpc_tools.__file__), "_proto")
        names = ["holdfast/v1/records.proto", "holdfast/v1/sync.proto"]
        out = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
        expect("protoc's exit code", protoc.main(["protoc", f"-I{proto}", f"-I{well_known}", *out, *names]), 0)
    sys.path.insert(0, folder)
    global records, sync, records_grpc, sync_grpc
    from holdfast.v1 import records_pb2 as records
    from holdfast.v1 import records_pb2_grpc as records_grpc
    from holdfast.v1 import sync_pb2 as sync
    from holdfast.v1 import sync_pb2_grpc as sync_grpc


# ---- calls -----------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """A node said no, and trying again does not help. `reason` is the stable one of ErrorInfo."""

    def __init__(self, code, reason, message, conflict):
        super().__init__(f"{code.name}/{reason}: {message}")
        self.code, self.reason, self.conflict = code, reason, conflict


def details_of(error):
    """Reason, pause in seconds (None = do not retry) and ConflictInfo out of the google.rpc.Status in the trailers."""
    reason, pause, conflict = "", None, None
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info, retry, mismatch = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), records.ConflictInfo()
            if detail.Unpack(info) and info.domain == "holdfast":
                reason = info.reason
            elif detail.Unpack(retry):
                pause = retry.retry_delay.ToTimedelta().total_seconds()
            elif detail.Unpack(mismatch):
                conflict = mismatch
    return reason, pause, conflict


class Cluster:
    """Several nodes, any of which takes any call."""

    OPTIONS = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.enable_http_proxy", 0),
    ]

    def __init__(self, endpoints):
        self.endpoints = endpoints
        self.channels = [grpc.insecure_channel(endpoint, self.OPTIONS) for endpoint in endpoints]
        self.turn = 0
        self.server_time_ms = None
        self.seen_at = 0.0
        self.seen = None
        self.retries = []

    def call(self, stub, method, request):
        """Asks one node after the other with the very same request, and so the same request id, until one answers."""
        end = time.monotonic() + CALL_SECONDS
        round_pause = 0.05
        while True:
            node = self.turn % len(self.channels)
            wait_seconds = getattr(request, "wait_ms", 0) / 1000
            try:
                call = getattr(stub(self.channels[node]), method)
                answer = call(request, timeout=ATTEMPT_SECONDS + wait_seconds)
                self.note(answer.header)
                return answer
            except grpc.RpcError as error:
                reason, pause, conflict = details_of(error)
                code, message = error.code(), error.details()
                # Without ErrorInfo no Holdfast node spoke: the connection broke, or nobody answered in time.
                broken = not reason and code in BROKEN
                if pause is None and not broken:
                    raise Refused(code, reason, message, conflict) from None
            self.turn += 1
            if broken:
                # The next one at once; after a round, when everybody was asked, not at once.
                pause = 0
                if self.turn % len(self.channels) == 0:
                    pause, round_pause = round_pause, min(round_pause * 2, 1.0)
            reason = reason or "UNREACHABLE"
            request_id = getattr(request, "request_id", "")
            retry = {"method": method, "request_id": request_id, "reason": reason, "pause_ms": round(pause * 1000)}
            self.retries.append(retry)
            say(f"{self.endpoints[node]}: {reason}: {message}; {method} again in {pause} s")
            if time.monotonic() + pause > end:
                raise Unexpected(f"{method}: no answer within {CALL_SECONDS} s; last {code.name}/{reason}: {message}")
            time.sleep(pause)

    def note(self, header):
        """Keeps what later calls build on: the server's time, and how far the log was."""
        time_ms = header.server_time.ToMilliseconds()
        if self.server_time_ms is None or time_ms > self.server_time_ms:
            self.server_time_ms, self.seen_at = time_ms, time.monotonic()
        place = (header.incarnation, header.group_id)
        if self.seen is None or place != (self.seen.incarnation, self.seen.group_id):
            self.seen = records.AtLeast(incarnation=header.incarnation, group_id=header.group_id)
        self.seen.applied_index = max(self.seen.applied_index, header.applied_index)
        if header.backoff_ms:
            time.sleep(header.backoff_ms / 1000)

    def write(self, user, device, mutations, incarnation, request_id=None):
        """One batch under one request id. Its age is counted in server time: a phone's clock may be anything."""
        request = records.BatchWriteRequest(
            user_id=user,
            request_id=request_id or str(uuid.uuid4()),
            mutations=mutations,
            device_id=device,
            if_incarnation=incarnation,
        )
        if self.server_time_ms is not None:
            elapsed_ms = int((time.monotonic() - self.seen_at) * 1000)
            request.first_sent_time.FromMilliseconds(self.server_time_ms + elapsed_ms)
        return request, self.send(request)

    def send(self, request):
        return self.call(records_grpc.RecordServiceStub, "BatchWrite", request)

    def read(self, user, record_id):
        key = records.RecordKey(collection=COLLECTION, record_id=record_id)
        request = records.BatchGetRecordsRequest(user_id=user, keys=[key])
        answer = self.call(records_grpc.RecordServiceStub, "BatchGetRecords", request)
        return answer, answer.records[0] if answer.records else None

    def changes(self, user, token):
        request = sync.GetChangesRequest(user_id=user, sync_token=token, page_size=PAGE_SIZE)
        if self.seen is not None:
            # Whichever node answers: not from before what this phone wrote or saw.
            request.consistency.at_least.CopyFrom(self.seen)
        answer = self.call(sync_grpc.SyncServiceStub, "GetChanges", request)
        outcome = answer.WhichOneof("outcome")
        # An outcome that this client does not know must not pass for "no changes".
        if outcome is None:
            raise Unexpected("GetChanges: neither a page nor a resync; nothing was changed here")
        return answer, outcome


# ---- what records.proto and sync.proto define ------------------------------------------------------------------------


def u64(number):
    return number.to_bytes(8, "big")


def content_hash(content_type, payload):
    """Of a record without blobs and without TTL."""
    content_type = content_type.encode()
    parts = u64(len(content_type)) + content_type + u64(len(payload)) + payload + u64(0) + u64(0)
    return blake3(parts).digest()[:16]


def collection_digest(live):
    total = 0
    for record_id, record in live.items():
        name = record_id.encode()
        entry = u64(len(name)) + name + u64(record["version"]) + bytes.fromhex(record["hash"])
        total += int.from_bytes(blake3(entry).digest(), "big")
    return (total % (1 << 256)).to_bytes(32, "big")


# ---- the phone -------------------------------------------------------------------------------------------------------


class Book:
    """What the phone holds. Saved as a whole: a token is never newer than the records beside it."""

    def __init__(self, path):
        self.path = path
        self.token, self.incarnation, self.records = "", 0, {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                saved = json.load(file)
            self.token, self.incarnation, self.records = saved["token"], saved["incarnation"], saved["records"]

    def save(self):
        saved = {"token": self.token, "incarnation": self.incarnation, "records": self.records}
        with open(self.path + ".new", "w", encoding="utf-8") as file:
            json.dump(saved, file, indent=1)
        os.replace(self.path + ".new", self.path)

    def apply(self, page, incarnation):
        for record in page.records:
            deleted = record.HasField("delete_time")
            if not deleted:
                computed = content_hash(record.content_type, record.payload)
                expect(f"content hash of {record.key.record_id}", record.content_hash.hex(), computed.hex())
            self.records[record.key.record_id] = {
                "version": record.version,
                "deleted": deleted,
                "type": record.content_type,
                "payload": base64.b64encode(record.payload).decode(),
                "hash": "" if deleted else record.content_hash.hex(),
            }
        self.token, self.incarnation = page.next_sync_token, incarnation
        self.save()

    def live(self):
        return {key: record for key, record in self.records.items() if not record["deleted"]}

    def verify(self, digests):
        """The server's digests against what is here: both must mean the same live records."""
        live = self.live()
        here = {COLLECTION: (len(live), collection_digest(live).hex())} if live else {}
        there = {one.collection: (one.count, one.digest.hex()) for one in digests if one.count}
        expect("collection digests (count, digest)", here, there)


def content(record):
    """What must be the same before and after, whatever versions the servers give."""
    return None if record is None or record["deleted"] else (record["type"], record["payload"])


def pull(cluster, user, book):
    """Pages until there are no more; then the book must be what the server has. Gives the number of pages."""
    for pages in range(1, 10_000):
        answer, outcome = cluster.changes(user, book.token)
        if outcome == "resync":
            reason = sync.ResyncReason.Name(answer.resync.reason)
            raise Unexpected(f"the token cannot be continued ({reason}): run `resync`; nothing was changed here")
        book.apply(answer.page, answer.header.incarnation)
        if not answer.page.more:
            book.verify(answer.page.digests)
            return pages
    raise Unexpected("the pages do not end")


def summary(cluster, book, **more):
    return {"live": len(book.live()), "known": len(book.records), "retries": cluster.retries, **more}


def put_of(record_id, payload, precondition=None):
    key = records.RecordKey(collection=COLLECTION, record_id=record_id)
    put = records.PutOp(content_type=CONTENT_TYPE, payload=payload)
    return records.Mutation(key=key, put=put, precondition=precondition)


def delete_of(record_id, precondition=None):
    key = records.RecordKey(collection=COLLECTION, record_id=record_id)
    return records.Mutation(key=key, delete=records.DeleteOp(), precondition=precondition)


def command_sync(cluster, book, args):
    if args.from_zero:
        book.token, book.records = "", {}
    pages = pull(cluster, args.user, book)
    return summary(cluster, book, pages=pages)


def command_edit(cluster, book, args):
    """Edits guarded by what the phone believes: a change that it did not see is not overwritten."""
    mutations = []
    for record_id in args.delete:
        guard = records.Precondition(version=book.records[record_id]["version"])
        mutations.append(delete_of(record_id, guard))
    for pair in args.put:
        record_id, text = pair.split("=", 1)
        known = book.records.get(record_id)
        guard = records.Precondition(version=known["version"] if known else 0)
        mutations.append(put_of(record_id, text.encode(), guard))
    request, answer = cluster.write(args.user, args.device, mutations, book.incarnation)
    expect("results", [one.changed for one in answer.results], [True] * len(mutations))
    # Its own changes come back in the feed.
    pull(cluster, args.user, book)
    for mutation in mutations:
        expect(f"version of {mutation.key.record_id}", book.records[mutation.key.record_id]["version"], answer.version)
    return summary(
        cluster,
        book,
        version=answer.version,
        commit_index=answer.commit_index,
        replayed=answer.replayed,
        request_id=request.request_id,
    )


def command_conflict(cluster, book, args):
    """Two devices change one contact from the same version. The second learns what it missed, merges, and wins."""
    name, base = "shared", b"FN:Ann"
    pull(cluster, args.user, book)
    _, first = cluster.write(args.user, "phone-a", [put_of(name, base)], book.incarnation)

    guard = records.Precondition(version=first.version)
    by_a, by_b = base + b"\nTEL:1", base + b"\nEMAIL:a@example.org"
    won_request, won = cluster.write(args.user, "phone-a", [put_of(name, by_a, guard)], first.header.incarnation)
    lost_id = str(uuid.uuid4())
    try:
        cluster.write(args.user, "phone-b", [put_of(name, by_b, guard)], first.header.incarnation, lost_id)
        raise Unexpected("the second of two writers from one version was not refused")
    except Refused as refused:
        expect("code of a failed guard", refused.code, grpc.StatusCode.ABORTED)
        expect("reason of a failed guard", refused.reason, "VERSION_MISMATCH")
        conflicts = refused.conflict.conflicts
        expect("number of conflicts", len(conflicts), 1)
        expect("conflict's index", conflicts[0].index, 0)
        expect("conflict's version", conflicts[0].current_version, won.version)
        expect("conflict is a tombstone", conflicts[0].deleted, False)
        expect("conflict's hash", conflicts[0].content_hash.hex(), content_hash(CONTENT_TYPE, by_a).hex())
        expect("history of the conflict", refused.conflict.header.incarnation, won.header.incarnation)

    # Not what it sent: somebody else's content. Fetch, merge line by line, write under a new request id.
    answer, theirs = cluster.read(args.user, name)
    expect("what won", theirs.payload, by_a)
    lines = theirs.payload.split(b"\n")
    merged = b"\n".join(lines + [line for line in by_b.split(b"\n") if line not in lines])
    guard = records.Precondition(version=theirs.version)
    request, settled = cluster.write(args.user, "phone-b", [put_of(name, merged, guard)], answer.header.incarnation)
    expect("merge has another request id", request.request_id != lost_id, True)
    expect("order of versions", first.version < won.version < settled.version, True)

    # The winner's answer was lost on the way, say: it asks again and is told the same, though its guard fails by now.
    again = cluster.send(won_request)
    expect("replayed", (won.replayed, again.replayed), (False, True))
    expect("replayed version", (again.version, again.commit_index), (won.version, won.commit_index))
    try:
        cluster.write(args.user, "phone-a", [put_of(name, base)], 0, won_request.request_id)
        raise Unexpected("a request id was taken with another body")
    except Refused as refused:
        expect("reason for a reused request id", refused.reason, "REQUEST_ID_REUSED")

    pull(cluster, args.user, book)
    expect("merged", base64.b64decode(book.records[name]["payload"]), merged)
    expect("version after the merge", book.records[name]["version"], settled.version)
    return summary(cluster, book, version=settled.version, merged=merged.decode())


def batches(mutations):
    """In parts that the service takes."""
    part, size = [], 0
    for mutation in mutations:
        if part and (len(part) >= BATCH_MUTATIONS or size + mutation.ByteSize() > BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append(mutation)
        size += mutation.ByteSize()
    if part:
        yield part


def restore_batch(cluster, args, mutations):
    """Sends lost writes again. What another device has brought back newer stays out; gives the ids of those."""
    beaten = []
    while mutations:
        try:
            cluster.write(args.user, args.device, mutations, 0)
            break
        except Refused as refused:
            if refused.reason != "VERSION_MISMATCH":
                raise
            indexes = {conflict.index for conflict in refused.conflict.conflicts}
            expect("a refusal names conflicts", bool(indexes), True)
            beaten += [mutations[index].key.record_id for index in sorted(indexes)]
            # A rejection leaves no trace: the rest is another batch, under another request id.
            mutations = [mutation for index, mutation in enumerate(mutations) if index not in indexes]
    return beaten


def command_resync(cluster, book, args):
    """The servers came back from an older copy: give them what they lost, deletes included, and go on."""
    before, lost_incarnation = dict(book.records), book.incarnation
    answer, outcome = cluster.changes(args.user, book.token)
    expect("outcome for a token beyond the fork", outcome, "resync")
    info = answer.resync
    expect("reason", sync.ResyncReason.Name(info.reason), "RESYNC_REASON_ROLLED_BACK")
    expect("a new history", answer.header.incarnation != lost_incarnation, True)
    time.sleep(info.start_after_ms / 1000)

    lost = {key: record for key, record in before.items() if record["version"] > info.common_version}
    mutations = []
    for record_id, record in sorted(lost.items(), key=lambda item: item[1]["version"]):
        guard = records.Precondition()
        guard.restore.common_version = info.common_version
        guard.restore.lost_version = record["version"]
        guard.restore.lost_incarnation = lost_incarnation
        if record["deleted"]:
            mutations.append(delete_of(record_id, guard))
        else:
            mutation = put_of(record_id, base64.b64decode(record["payload"]), guard)
            mutation.put.content_type = record["type"]
            mutations.append(mutation)
    beaten = [one for part in batches(mutations) for one in restore_batch(cluster, args, part)]

    # Everything above the fork comes back in the feed, its own uploads too, with versions of the new history.
    book.token = info.resume_token
    pull(cluster, args.user, book)
    differing = [
        key for key in sorted({*before, *book.records}) if content(before.get(key)) != content(book.records.get(key))
    ]
    unexplained = [key for key in differing if key in lost and key not in beaten]
    expect("records that were uploaded again and differ from before", unexplained, [])
    kept = [key for key in sorted(lost) if book.records[key]["version"] == lost[key]["version"]]
    expect("records that kept a version of the lost history", kept, [])
    return summary(
        cluster,
        book,
        common_version=info.common_version,
        uploaded=sorted(set(lost) - set(beaten)),
        beaten=sorted(beaten),
        changed_by_others=differing,
    )


def say(text):
    print(text, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proto", required=True, help="folder with holdfast/v1/*.proto")
    parser.add_argument("--generated", required=True, help="folder for the generated modules; kept between calls")
    parser.add_argument("--endpoints", required=True, help="host:port of several nodes, with commas between them")
    parser.add_argument("--book", required=True, help="file with what the phone holds; made if it is missing")
    parser.add_argument("--user", required=True)
    parser.add_argument("--device", default="phone-a")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("sync", help="take what changed, and compare digests")
    one.add_argument("--from-zero", action="store_true", help="with an empty token")
    one.set_defaults(run=command_sync)
    one = commands.add_parser("edit", help="one guarded batch of edits, then a sync")
    one.add_argument("--put", action="append", default=[], metavar="ID=TEXT")
    one.add_argument("--delete", action="append", default=[], metavar="ID")
    one.set_defaults(run=command_edit)
    commands.add_parser("conflict", help="two writers, one contact").set_defaults(run=command_conflict)
    commands.add_parser("resync", help="after the servers lost data").set_defaults(run=command_resync)
    args = parser.parse_args()
    try:
        generate(args.proto, args.generated)
        print(json.dumps(args.run(Cluster(args.endpoints.split(",")), Book(args.book), args)))
    except (Unexpected, Refused) as error:
        say(f"phone: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
