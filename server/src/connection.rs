//! One agent's connection: its requests, its upload streams, its session.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use vsync_protocol::id::{Cid, MachineKey, RealmId, VolumeName};
use vsync_protocol::wire::{
    MESSAGE_HEAD_LEN, Refusal, RefusalCode, Reply, Request, UPLOAD_HEAD_LEN, UploadHead, VERSION, encode_message,
    message_len,
};

use crate::catalog::Group;
use crate::fetch::{self, Plan};
use crate::limits::Client;
use crate::refusal::{number, refusal};
use crate::serve::{Member, Shared};
use crate::session::Session;

/// A request must have arrived whole, and a short reply have been taken, in this time.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Members are asked about this often even when nothing is requested.
const MEMBER_CHECK: Duration = Duration::from_secs(5);

/// Bytes read for one connection's fetches but not yet taken by QUIC.
const FETCH_ROOM: usize = 4 << 20;

/// One agent's connection.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    quic: quinn::Connection,
    key: MachineKey,
    client: Arc<Client>,
    /// Tells it from all others of this server.
    serial: u64,
    greeted: AtomicBool,
    session: Mutex<Sessions>,
    fetch_room: Semaphore,
}

#[derive(Default)]
struct Sessions {
    opened: u32,
    current: Option<Arc<Session>>,
    ingest: Vec<JoinHandle<()>>,
}

impl Connection {
    pub(crate) fn new(shared: Arc<Shared>, quic: quinn::Connection, key: MachineKey, client: Arc<Client>) -> Arc<Self> {
        let fetch_room = Semaphore::new(FETCH_ROOM);
        let serial = shared.serial.fetch_add(1, Ordering::Relaxed);
        let (greeted, session) = (AtomicBool::new(false), Mutex::default());
        Arc::new(Self { shared, quic, key, client, serial, greeted, session, fetch_room })
    }

    /// Serves the connection until it is closed, and until what it brought is durable.
    pub(crate) async fn run(self: Arc<Self>) {
        let share = self.shared.shares.join(&self.quic);
        let mut streams = JoinSet::new();
        // Not at once: the handshake has just asked.
        let mut member_check = tokio::time::interval_at(Instant::now() + MEMBER_CHECK, MEMBER_CHECK);
        loop {
            tokio::select! {
                opened = self.quic.accept_bi() => match opened {
                    Ok((send, recv)) => drop(streams.spawn(Arc::clone(&self).request(send, recv))),
                    Err(_) => break,
                },
                opened = self.quic.accept_uni() => match opened {
                    Ok(recv) => drop(streams.spawn(Arc::clone(&self).upload(recv))),
                    Err(_) => break,
                },
                Some(ended) = streams.join_next() => self.note_panic(ended),
                _ = member_check.tick() => {
                    share.settle();
                    if self.member().is_err() {
                        self.close(RefusalCode::NotAuthorised, "the machine's key was removed");
                    }
                }
            }
        }
        // First, so that no request waits for frames that cannot come any more. Those that
        // are changing the store are let finish.
        let ingest = self.close_sessions();
        while let Some(ended) = streams.join_next().await {
            self.note_panic(ended);
        }
        for ended in ingest {
            self.note_panic(ended.await);
        }
        let serial = self.serial;
        if let Err(refused) = self.blocking(move |shared| shared.abandon_jobs(serial)).await {
            tracing::warn!("lost jobs stay under way: {}", refused.message);
        }
    }

    /// A panic ends the stream it happened in, and the connection with it, but no other.
    fn note_panic(&self, ended: Result<(), tokio::task::JoinError>) {
        if ended.is_err_and(|error| error.is_panic()) {
            tracing::error!("a task of the connection from {} panicked", self.quic.remote_address());
            self.close(RefusalCode::Store, "internal error");
        }
    }

    fn close(&self, code: RefusalCode, reason: &str) {
        self.quic.close(number(code), reason.as_bytes());
    }

    /// The machine behind the connection; asked anew each time, so that a removed one is
    /// out at once.
    fn member(&self) -> Result<Member, Refusal> {
        let member = (self.shared.members)(self.key);
        member.ok_or_else(|| refusal(RefusalCode::NotAuthorised, format!("no machine has the key {}", self.key)))
    }

    fn greeted_member(&self) -> Result<Member, Refusal> {
        let member = self.member()?;
        let greeted = self.greeted.load(Ordering::Relaxed);
        if greeted { Ok(member) } else { Err(refusal(RefusalCode::Malformed, "a connection begins with Hello")) }
    }

    async fn request(self: Arc<Self>, mut send: SendStream, mut recv: RecvStream) {
        // Held while the request runs. A server that shuts down takes all permits, waiting
        // for those that are held, so that from then on there are none.
        let running = self.shared.running.try_acquire();
        let request = timeout(MESSAGE_TIMEOUT, read_request(&mut recv)).await;
        if let Ok(Ok(request)) = &request {
            self.client.pace(names(request)).await;
        }
        let answered = match request {
            Ok(Ok(_)) if running.is_err() => Err(refusal(RefusalCode::Draining, "the server is shutting down")),
            Ok(Ok(Request::Fetch { cids })) => self.fetch(&mut send, cids.into_vec()).await,
            Ok(Ok(request)) => self.answer(request).await,
            Ok(Err(refused)) => Err(refused),
            Err(_) => Err(refusal(RefusalCode::Malformed, "the request did not arrive in time")),
        };
        let reply = match answered {
            // A fetch has sent its reply itself.
            Ok(None) => return,
            Ok(Some(reply)) => reply,
            Err(refused) => Reply::Refused(refused),
        };
        // An agent that went away needs no reply.
        let _ = timeout(MESSAGE_TIMEOUT, send_reply(&mut send, &reply)).await;
        let _ = send.finish();
    }

    async fn answer(self: &Arc<Self>, request: Request) -> Result<Option<Reply>, Refusal> {
        let member = match request {
            Request::Hello { .. } => self.member()?,
            _ => self.greeted_member()?,
        };
        let reply = match request {
            Request::Hello { version, realm } => self.hello(version, realm).await?,
            Request::Open { volume } => self.open(&member, volume).await?,
            Request::Have { session, cids } => {
                let session = self.session(session)?;
                self.blocking(move |shared| Ok(shared.archive.have(&session.pins, cids.as_slice())?)).await.map(have)?
            }
            Request::Holds { cids } => {
                require_reader(&member)?;
                let answers = self.blocking(move |shared| Ok(shared.archive.catalog().have(cids.as_slice())?));
                answers.await.map(have)?
            }
            Request::Flush { session, frames } => {
                self.session(session)?.flush(&frames).await?;
                Reply::Flushed
            }
            Request::Commit { session, manifest } => self.commit(session, manifest).await?,
            Request::Snapshots(listing) => self.blocking(move |shared| shared.snapshots(&member, listing)).await?,
            Request::Registry => self.blocking(|shared| shared.registry()).await?,
            Request::Log { from } => self.blocking(move |shared| shared.log(from)).await?,
            Request::Status => self.blocking(|shared| shared.status()).await?,
            Request::Overview => self.blocking(move |shared| shared.overview(&member)).await?,
            Request::BeginJob(start) => {
                let serial = self.serial;
                self.blocking(move |shared| shared.begin_job(&member, serial, start)).await?
            }
            Request::EndJob { id, result } => self.blocking(move |shared| shared.end_job(&member, id, result)).await?,
            Request::Jobs(listing) => self.blocking(move |shared| shared.jobs(&member, listing)).await?,
            Request::Damaged { cid } => {
                let damaged = self.blocking(move |shared| Ok(shared.archive.recheck(cid)?)).await?;
                Reply::Checked { damaged }
            }
            // Answered by `fetch`, which needs the stream.
            Request::Fetch { .. } => return Ok(None),
            Request::Forget { .. }
            | Request::Plan(_)
            | Request::Undelete { .. }
            | Request::Pin { .. }
            | Request::Unpin { .. }
            | Request::Release { .. }
            | Request::ConfirmClock { .. }
            | Request::Collect(_)
            | Request::Scrub { .. } => self.administrate(member, request).await?,
        };
        Ok(Some(reply))
    }

    /// Answers what only administrators may ask.
    async fn administrate(&self, member: Member, request: Request) -> Result<Reply, Refusal> {
        require_admin(member)?;
        match request {
            // These take hours, and wait for one another; the turns of walks are not for them.
            Request::Collect(order) => return self.off_runtime(move |shared| shared.collect(order)).await,
            Request::Scrub { rate } => return self.off_runtime(move |shared| shared.scrub(rate)).await,
            _ => {}
        }
        // Trees may be walked; the turns of short work are not for it.
        let _walk = self.shared.walks.acquire().await;
        // The wait may have been long: who was removed meanwhile decides nothing.
        let member = self.greeted_member().and_then(require_admin)?;
        self.off_runtime(move |shared| {
            let (archive, by) = (&shared.archive, member.name.as_str());
            let position = match request {
                Request::Forget { ids } => return shared.forget(&member, &ids),
                Request::Plan(request) => return shared.plan(&request),
                Request::Undelete { id } => archive.undelete(id, by)?,
                Request::Pin { id } => archive.pin(id, true, by)?,
                Request::Unpin { id } => archive.pin(id, false, by)?,
                Request::Release { volume, source } => archive.release(&volume, source.as_ref(), by)?,
                Request::ConfirmClock { now } => archive.confirm_clock_with(now)?,
                _ => return Err(refusal(RefusalCode::Malformed, "not a request of administrators")),
            };
            Ok(Reply::Done(position))
        })
        .await
    }

    async fn hello(&self, version: u32, realm: RealmId) -> Result<Reply, Refusal> {
        if version == 0 {
            return Err(refusal(RefusalCode::Version, format!("this server speaks versions 1 to {VERSION}")));
        }
        if realm != self.shared.realm {
            let message = format!("this server keeps realm {}, not {realm}", self.shared.realm);
            return Err(refusal(RefusalCode::WrongRealm, message));
        }
        self.greeted.store(true, Ordering::Relaxed);
        // As far as the log can be shown: the catalog learns of an entry last, or not before the next start.
        let log = self.blocking(|shared| Ok(shared.archive.catalog().mark()?.position)).await?;
        let now = self.shared.archive.time().0.now;
        Ok(Reply::Hello { version: version.min(VERSION), now, log })
    }

    async fn open(&self, member: &Member, volume: VolumeName) -> Result<Reply, Refusal> {
        let (source, asked) = (member.name.clone(), volume.clone());
        let last = self
            .blocking(move |shared| {
                shared.archive.check_writable()?;
                Ok(shared.archive.catalog().last(&asked, &source)?)
            })
            .await?;
        // May walk over trees; the turns of short work are not for it.
        let (name, of) = (member.name.clone(), volume.clone());
        let group = Group { source: member.name.clone(), volume };
        let allowance = self.off_runtime(move |shared| shared.allowance(&name, &of)).await?;
        // What an unfinished session brought is to be found by the new one's questions.
        for ingest in self.close_sessions() {
            self.note_panic(ingest.await);
        }
        let mut sessions = self.sessions();
        sessions.opened += 1;
        let (session, ingest) =
            Session::begin(sessions.opened, group, allowance, Arc::clone(&self.shared.archive), &self.shared.shares);
        sessions.ingest.extend(ingest);
        if let Some(other) = sessions.current.replace(session) {
            other.close();
        }
        Ok(Reply::Opened { session: sessions.opened, last })
    }

    async fn commit(&self, session: u32, manifest: Vec<u8>) -> Result<Reply, Refusal> {
        let session = self.session(session)?;
        // So that what has arrived counts, flushed or not.
        session.flush(&[]).await?;
        // A walk over a large tree takes long; the turns of short work are not for it.
        let _walk = self.shared.walks.acquire().await;
        // The wait may have been long, too: who was removed meanwhile commits nothing.
        let (key, name) = (self.key, self.greeted_member()?.name);
        self.off_runtime(move |shared| shared.commit(key, &name, &session.volume, manifest)).await
    }

    async fn fetch(&self, send: &mut SendStream, cids: Vec<Cid>) -> Result<Option<Reply>, Refusal> {
        let member = self.greeted_member()?;
        require_reader(&member)?;
        let plan = self.blocking(move |shared| Ok(Plan::new(&shared.archive, &cids)?)).await?;
        if self.send_blobs(send, plan).await.is_ok() {
            let _ = send.finish();
        }
        Ok(None)
    }

    /// Errors mean that the agent no longer listens.
    async fn send_blobs(&self, send: &mut SendStream, plan: Plan) -> Result<(), quinn::WriteError> {
        send_reply(send, &Reply::Fetching).await?;
        let mut absent: Vec<Bytes> = plan.absent.into_iter().map(fetch::absent).collect();
        send.write_all_chunks(&mut absent).await?;
        for run in plan.runs {
            // Given back when QUIC has taken the bytes, which its send window bounds.
            let room = run.len().min(FETCH_ROOM) as u32;
            let Ok(_room) = self.fetch_room.acquire_many(room).await else { break };
            // Allocated on this thread, like the blobs of uploads: an allocator that keeps an
            // arena for each thread would otherwise keep freed buffers in all of them.
            let buffer = vec![0; run.len()];
            let read = self.blocking(move |shared| Ok(run.read(&shared.archive, buffer)?)).await;
            let Ok(mut frames) = read else {
                // Without its frames the reply is cut short, which the agent notices.
                let _ = send.reset(number(RefusalCode::Store));
                return Err(quinn::WriteError::ClosedStream);
            };
            send.write_all_chunks(&mut frames).await?;
        }
        Ok(())
    }

    async fn upload(self: Arc<Self>, mut recv: RecvStream) {
        let mut head = [0; UPLOAD_HEAD_LEN];
        let received = match timeout(MESSAGE_TIMEOUT, recv.read_exact(&mut head)).await {
            Ok(Ok(())) => self.receive(head, &mut recv).await,
            _ => Err(refusal(RefusalCode::Malformed, "an upload stream without a head")),
        };
        if let Err(refused) = received {
            // The words reach the agent with its next request; a lost stream is gone anyway.
            let _ = recv.stop(number(refused.code));
        }
    }

    async fn receive(&self, head: [u8; UPLOAD_HEAD_LEN], recv: &mut RecvStream) -> Result<(), Refusal> {
        let malformed = || refusal(RefusalCode::Malformed, "more upload streams than there may be");
        let head = UploadHead::decode(head).ok_or_else(malformed)?;
        self.member()?;
        let receiving = self.shared.clients.receiving(&self.client);
        self.session(head.session)?.receive(head.stream, recv, &receiving).await
    }

    fn session(&self, id: u32) -> Result<Arc<Session>, Refusal> {
        let current = self.sessions().current.clone().filter(|session| session.id == id);
        let session = current.ok_or_else(|| refusal(RefusalCode::NoSession, format!("no session {id} is open")))?;
        session.check()?;
        Ok(session)
    }

    fn close_sessions(&self) -> Vec<JoinHandle<()>> {
        let mut sessions = self.sessions();
        if let Some(session) = sessions.current.take() {
            session.close();
        }
        std::mem::take(&mut sessions.ingest)
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, Sessions> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs what blocks on a thread that may, few at a time.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let _turn = self.shared.turns.acquire().await;
        self.off_runtime(work).await
    }

    async fn off_runtime<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        done.map_err(|_| refusal(RefusalCode::Store, "internal error"))?
    }
}

/// How many blobs a request asks about.
fn names(request: &Request) -> usize {
    match request {
        Request::Have { cids, .. } | Request::Holds { cids } | Request::Fetch { cids } => cids.as_slice().len(),
        _ => 0,
    }
}

fn have(answers: Vec<bool>) -> Reply {
    Reply::Have(answers.into_iter().collect())
}

fn require_admin(member: Member) -> Result<Member, Refusal> {
    if member.may_admin {
        return Ok(member);
    }
    Err(refusal(RefusalCode::NotAuthorised, format!("{} is no administrator", member.name)))
}

fn require_reader(member: &Member) -> Result<(), Refusal> {
    if member.may_read {
        return Ok(());
    }
    Err(refusal(RefusalCode::NotAuthorised, format!("{} may write backups but not read them", member.name)))
}

async fn read_request(recv: &mut RecvStream) -> Result<Request, Refusal> {
    let malformed = |what: String| refusal(RefusalCode::Malformed, what);
    let cut = |_| malformed("the request is cut short".to_owned());
    let mut head = [0; MESSAGE_HEAD_LEN];
    recv.read_exact(&mut head).await.map_err(cut)?;
    let len = message_len(head).ok_or_else(|| malformed("the request is too long".to_owned()))?;
    let mut bytes = vec![0; len];
    recv.read_exact(&mut bytes).await.map_err(cut)?;
    minicbor::decode(&bytes).map_err(|error| malformed(format!("unreadable request: {error}")))
}

async fn send_reply(send: &mut SendStream, reply: &Reply) -> Result<(), quinn::WriteError> {
    send.write_chunk(encode_message(reply).into()).await
}
