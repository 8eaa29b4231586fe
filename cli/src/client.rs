//! A client of the daemon's control socket. Everything that a command does, it does through this.

use std::{
    marker::PhantomData,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Incoming, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;
use zumastor_core::{GroupName, NodeName, SnapshotNumber, VolumeName};

use crate::{
    api::{
        AddPeer, DefineMaster, DefineRotations, DefineSource, DefineTarget, DefineVolume, DeleteSnapshots,
        Destroy, History, Mounts, Outcome, Part, PeerList, Replicate, ReplicateEvent, Resize, Scrub,
        ScrubEvent, SnapshotReport, Status, TakeSnapshot, TakenGroup, TakenSnapshot, VolumePlan,
    },
    exit::Failure,
    paths::{Paths, check_socket_path},
};

/// Speaks to one daemon. Every call makes its own connection.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon that has these directories.
    pub fn new(paths: &Paths) -> Self {
        Self { socket: paths.socket() }
    }

    /// The socket it speaks to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Everything, or one volume.
    pub async fn status(&self, volume: Option<&VolumeName>) -> Result<Status, Failure> {
        self.status_with(volume, false).await
    }

    /// Everything, or one volume; with `usage`, also what each snapshot takes.
    pub async fn status_with(&self, volume: Option<&VolumeName>, usage: bool) -> Result<Status, Failure> {
        let path = volume.map_or_else(|| "/v1/status".to_owned(), |volume| format!("/v1/status/{volume}"));
        self.call(Method::GET, &format!("{path}?usage={usage}"), None::<&()>).await
    }

    /// One snapshot, likewise.
    pub async fn snapshot_report(
        &self,
        volume: &VolumeName,
        number: SnapshotNumber,
        usage: bool,
    ) -> Result<SnapshotReport, Failure> {
        let path = format!("/v1/status/{volume}/{number}?usage={usage}");
        self.call(Method::GET, &path, None::<&()>).await
    }

    /// `history`: at most so many entries of each kind.
    pub async fn history(&self, volume: &VolumeName, most: Option<usize>) -> Result<History, Failure> {
        let most = most.map(|most| format!("?most={most}")).unwrap_or_default();
        self.call(Method::GET, &format!("/v1/volumes/{volume}/history{most}"), None::<&()>).await
    }

    /// `define volume`; the paths must be absolute.
    pub async fn define_volume(
        &self,
        volume: &VolumeName,
        define: &DefineVolume,
    ) -> Result<Outcome, Failure> {
        self.call(Method::POST, &format!("/v1/volumes/{volume}"), Some(define)).await
    }

    /// `define master`, with what is to be added or changed.
    pub async fn define_master(
        &self,
        volume: &VolumeName,
        define: &DefineMaster,
    ) -> Result<Outcome, Failure> {
        self.call(Method::PUT, &format!("/v1/volumes/{volume}/master"), Some(define)).await
    }

    /// `remount`; the paths must be absolute.
    pub async fn remount(&self, volume: &VolumeName, mounts: &Mounts) -> Result<Outcome, Failure> {
        self.call(Method::PUT, &format!("/v1/volumes/{volume}/mounts"), Some(mounts)).await
    }

    /// `define schedule`.
    pub async fn define_schedule(
        &self,
        volume: &VolumeName,
        define: &DefineRotations,
    ) -> Result<Outcome, Failure> {
        self.call(Method::PUT, &format!("/v1/volumes/{volume}/schedule"), Some(define)).await
    }

    /// `forget schedule`.
    pub async fn forget_schedule(&self, volume: &VolumeName) -> Result<Outcome, Failure> {
        self.call(Method::DELETE, &format!("/v1/volumes/{volume}/schedule"), None::<&()>).await
    }

    /// `plan`.
    pub async fn plan(&self, volume: &VolumeName) -> Result<VolumePlan, Failure> {
        self.call(Method::GET, &format!("/v1/volumes/{volume}/plan"), None::<&()>).await
    }

    /// `stop`.
    pub async fn stop(&self, volume: &VolumeName, part: &Part) -> Result<Outcome, Failure> {
        self.call(Method::PUT, &stopped_path(volume, part), None::<&()>).await
    }

    /// `start`.
    pub async fn start(&self, volume: &VolumeName, part: &Part) -> Result<Outcome, Failure> {
        self.call(Method::DELETE, &stopped_path(volume, part), None::<&()>).await
    }

    /// `reload`.
    pub async fn reload(&self) -> Result<Outcome, Failure> {
        self.call(Method::POST, "/v1/reload", None::<&()>).await
    }

    /// `delete`: all of these snapshots, or none.
    pub async fn delete(&self, volume: &VolumeName, what: &DeleteSnapshots) -> Result<Outcome, Failure> {
        self.call(Method::DELETE, &format!("/v1/volumes/{volume}/snapshots"), Some(what)).await
    }

    /// `destroy`.
    pub async fn destroy(&self, what: &Destroy) -> Result<Outcome, Failure> {
        self.call(Method::POST, "/v1/destroy", Some(what)).await
    }

    /// `promote`.
    pub async fn promote(&self, volume: &VolumeName) -> Result<Outcome, Failure> {
        self.call(Method::POST, &format!("/v1/volumes/{volume}/promote"), None::<&()>).await
    }

    /// `define source`.
    pub async fn define_source(
        &self,
        volume: &VolumeName,
        define: &DefineSource,
    ) -> Result<Outcome, Failure> {
        self.call(Method::PUT, &format!("/v1/volumes/{volume}/source"), Some(define)).await
    }

    /// `define target`.
    pub async fn define_target(
        &self,
        volume: &VolumeName,
        define: &DefineTarget,
    ) -> Result<Outcome, Failure> {
        self.call(Method::PUT, &format!("/v1/volumes/{volume}/targets"), Some(define)).await
    }

    /// `forget volume`.
    pub async fn forget_volume(&self, volume: &VolumeName) -> Result<Outcome, Failure> {
        self.call(Method::DELETE, &format!("/v1/volumes/{volume}"), None::<&()>).await
    }

    /// `forget source`.
    pub async fn forget_source(&self, volume: &VolumeName) -> Result<Outcome, Failure> {
        self.call(Method::DELETE, &format!("/v1/volumes/{volume}/source"), None::<&()>).await
    }

    /// `forget target`.
    pub async fn forget_target(&self, volume: &VolumeName, host: &str) -> Result<Outcome, Failure> {
        let path = format!("/v1/volumes/{volume}/targets/{}", encode(host));
        self.call(Method::DELETE, &path, None::<&()>).await
    }

    /// `snapshot`, in a rotation or manual: when this returns, the snapshot exists.
    pub async fn snapshot(
        &self,
        volume: &VolumeName,
        rotation: Option<&str>,
    ) -> Result<TakenSnapshot, Failure> {
        let body = TakeSnapshot { rotation: rotation.map(str::to_owned) };
        self.call(Method::POST, &format!("/v1/volumes/{volume}/snapshots"), Some(&body)).await
    }

    /// `snapshot --group`: one of each volume of a group, or none.
    pub async fn snapshot_group(
        &self,
        group: &GroupName,
        rotation: Option<&str>,
    ) -> Result<TakenGroup, Failure> {
        let body = TakeSnapshot { rotation: rotation.map(str::to_owned) };
        self.call(Method::POST, &format!("/v1/groups/{group}/snapshots"), Some(&body)).await
    }

    /// `hold`.
    pub async fn hold(
        &self,
        volume: &VolumeName,
        number: SnapshotNumber,
        name: &str,
    ) -> Result<Outcome, Failure> {
        self.call(Method::PUT, &hold_path(volume, number, name), None::<&()>).await
    }

    /// `release`.
    pub async fn release(
        &self,
        volume: &VolumeName,
        number: SnapshotNumber,
        name: &str,
    ) -> Result<Outcome, Failure> {
        self.call(Method::DELETE, &hold_path(volume, number, name), None::<&()>).await
    }

    /// `revert`.
    pub async fn revert(&self, volume: &VolumeName, number: SnapshotNumber) -> Result<Outcome, Failure> {
        let path = format!("/v1/volumes/{volume}/snapshots/{number}/revert");
        self.call(Method::POST, &path, None::<&()>).await
    }

    /// `resize`.
    pub async fn resize(&self, volume: &VolumeName, resize: &Resize) -> Result<Outcome, Failure> {
        self.call(Method::PUT, &format!("/v1/volumes/{volume}/size"), Some(resize)).await
    }

    /// `replicate`, without waiting for it.
    pub async fn replicate(&self, volume: &VolumeName, asked: &Replicate) -> Result<Outcome, Failure> {
        let body = Replicate { wait: false, ..asked.clone() };
        self.call(Method::POST, &format!("/v1/volumes/{volume}/replicate"), Some(&body)).await
    }

    /// `replicate --wait`: the events, to be followed to the last.
    pub async fn replicate_and_follow(
        &self,
        volume: &VolumeName,
        asked: &Replicate,
    ) -> Result<Events<ReplicateEvent>, Failure> {
        let body = Replicate { wait: true, ..asked.clone() };
        self.follow(&format!("/v1/volumes/{volume}/replicate"), &body).await
    }

    /// `scrub`, without waiting for it.
    pub async fn scrub(&self, volume: &VolumeName, asked: &Scrub) -> Result<Outcome, Failure> {
        let body = Scrub { wait: false, ..asked.clone() };
        self.call(Method::POST, &format!("/v1/volumes/{volume}/scrub"), Some(&body)).await
    }

    /// `scrub`: the events, to be followed to the last.
    pub async fn scrub_and_follow(
        &self,
        volume: &VolumeName,
        asked: &Scrub,
    ) -> Result<Events<ScrubEvent>, Failure> {
        let body = Scrub { wait: true, ..asked.clone() };
        self.follow(&format!("/v1/volumes/{volume}/scrub"), &body).await
    }

    /// `peer list`.
    pub async fn peers(&self) -> Result<PeerList, Failure> {
        self.call(Method::GET, "/v1/peers", None::<&()>).await
    }

    /// `peer add`.
    pub async fn add_peer(&self, name: NodeName, ticket: &str) -> Result<Outcome, Failure> {
        self.call(Method::POST, "/v1/peers", Some(&AddPeer { name, ticket: ticket.to_owned() })).await
    }

    /// `peer remove`.
    pub async fn remove_peer(&self, name: &NodeName) -> Result<Outcome, Failure> {
        self.call(Method::DELETE, &format!("/v1/peers/{name}"), None::<&()>).await
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, Failure> {
        let response = good(self.send(method, path, body).await?).await?;
        let bytes = response.into_body().collect().await.map_err(|_| cut_off())?.to_bytes();
        serde_json::from_slice(&bytes).map_err(Failure::doing("the daemon's answer could not be read"))
    }

    async fn follow<B: Serialize, T>(&self, path: &str, body: &B) -> Result<Events<T>, Failure> {
        let response = good(self.send(Method::POST, path, Some(body)).await?).await?;
        Ok(Events { body: response.into_body(), buffer: BytesMut::new(), of: PhantomData })
    }

    async fn send<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Response<Incoming>, Failure> {
        check_socket_path(&self.socket)?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|_| cut_off())?;
        tokio::spawn(connection);
        let bytes = match body {
            Some(body) => {
                serde_json::to_vec(body).map_err(Failure::doing("the request could not be written"))?
            }
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "zumastor")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(bytes)))
            .map_err(Failure::doing("the request could not be written"))?;
        sender.send_request(request).await.map_err(|_| cut_off())
    }

    fn unreachable(&self, error: &std::io::Error) -> Failure {
        use std::io::ErrorKind;
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                Failure::failed(format!("no daemon is running (no answer at {socket})"))
                    .remedy("start it with `zumastor daemon`")
            }
            ErrorKind::PermissionDenied => {
                Failure::failed(format!("the control socket may not be used by this user: {socket}"))
                    .remedy("use the account that the daemon runs under")
            }
            _ => Failure::failed(format!("the daemon could not be reached at {socket}: {error}")),
        }
    }
}

/// What happens while something is being done.
#[derive(Debug)]
pub struct Events<T> {
    body: Incoming,
    buffer: BytesMut,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> Events<T> {
    /// The next event. `Done` or `Failed` is the last; a connection that ends before is an error.
    pub async fn next(&mut self) -> Result<T, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return serde_json::from_slice(&line)
                    .map_err(Failure::doing("the daemon's answer could not be read"));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(_)) | None => return Err(cut_off()),
            }
        }
    }
}

/// The response if it is a success, else the failure it carries.
async fn good(response: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let bytes = response.into_body().collect().await.map_err(|_| cut_off())?.to_bytes();
    Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&bytes);
        Failure::failed(format!("the daemon answered {status}: {text}"))
    }))
}

fn cut_off() -> Failure {
    Failure::failed("the daemon went away in the middle of the answer")
        .remedy(
            "its messages say why; once it runs again, `zumastor status` shows whether this was done, and if not, \
             the command can be repeated",
        )
}

fn hold_path(volume: &VolumeName, number: SnapshotNumber, name: &str) -> String {
    format!("/v1/volumes/{volume}/snapshots/{number}/holds/{}", encode(name))
}

fn stopped_path(volume: &VolumeName, part: &Part) -> String {
    format!("/v1/volumes/{volume}/stopped/{}", encode(&part.to_string()))
}

/// Percent-encoding of one segment of a path (RFC 3986, section 2).
fn encode(segment: &str) -> String {
    let mut text = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text.push(byte as char),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_encoded() {
        assert_eq!(encode("a-b_c.d~9"), "a-b_c.d~9");
        assert_eq!(encode("[::1]:9/ä"), "%5B%3A%3A1%5D%3A9%2F%C3%A4");
    }
}
