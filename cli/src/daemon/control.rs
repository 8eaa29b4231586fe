//! The control API on its Unix socket: the routes of [`crate::api`], each a call of the daemon.

use std::{convert::Infallible, str::FromStr, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use http_body_util::channel::Channel;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
};
use zumastor_core::{NodeName, SnapshotNumber, VolumeName};

use super::{Daemon, replicate::follow};
use crate::{
    api::{DeleteSnapshots, Outcome, Part, Replicate, ReplicateEvent, Scrub, TakeSnapshot},
    exit::{Exit, Failure, chain},
};

type Shared = State<Arc<Daemon>>;

/// Serves until `stop` becomes true and the requests that are being answered have been.
pub async fn serve(listener: UnixListener, daemon: Arc<Daemon>, mut stop: watch::Receiver<bool>) {
    let volume = Router::new()
        .route("/", post(define_volume).delete(forget_volume))
        .route("/master", put(define_master))
        .route("/mounts", put(remount))
        .route("/promote", post(promote))
        .route("/source", put(define_source).delete(forget_source))
        .route("/targets", put(define_target))
        .route("/targets/{host}", delete(forget_target))
        .route("/schedule", put(define_schedule).delete(forget_schedule))
        .route("/plan", get(plan))
        .route("/history", get(history))
        .route("/stopped/{part}", put(stop_part).delete(start_part))
        .route("/snapshots", post(snapshot).delete(delete_snapshots))
        .route("/snapshots/{number}/holds/{hold}", put(hold).delete(release))
        .route("/snapshots/{number}/revert", post(revert))
        .route("/size", put(resize))
        .route("/scrub", post(scrub))
        .route("/replicate", post(replicate));
    let v1 = Router::new()
        .route("/status", get(status_of_all))
        .route("/status/{volume}", get(status_of_one))
        .route("/status/{volume}/{number}", get(status_of_snapshot))
        .nest("/volumes/{volume}", volume)
        .route("/destroy", post(destroy))
        .route("/groups/{group}/snapshots", post(snapshot_group))
        .route("/reload", post(reload))
        .route("/peers", get(peers).post(add_peer))
        .route("/peers/{name}", delete(remove_peer));
    let app = Router::new()
        .nest("/v1", v1)
        .fallback(|| async {
            Failure::usage("there is nothing at this path; the API begins at /v1").into_response()
        })
        .method_not_allowed_fallback(|| async {
            Failure::usage("this path has no such method").into_response()
        })
        .with_state(daemon);
    let stopped = async move {
        // An error means that the sender is gone, which is as good.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stopped).await {
        tracing::error!(error = %chain(&error), "the control socket failed");
    }
}

type Answer = Result<Response, Failure>;

/// What may stand behind the `?` of a question.
#[derive(Debug, Deserialize)]
struct Options {
    #[serde(default)]
    usage: bool,
    most: Option<usize>,
}

async fn status_of_all(State(daemon): Shared, Query(options): Query<Options>) -> Answer {
    answer(daemon.status(None, options.usage).await)
}

async fn status_of_one(
    State(daemon): Shared,
    Path(volume): Path<String>,
    Query(options): Query<Options>,
) -> Answer {
    answer(daemon.status(Some(&parse(&volume)?), options.usage).await)
}

async fn status_of_snapshot(
    State(daemon): Shared,
    Path((volume, number)): Path<(String, String)>,
    Query(options): Query<Options>,
) -> Answer {
    answer(daemon.snapshot_report(&parse(&volume)?, parse_number(&number)?, options.usage).await)
}

async fn history(
    State(daemon): Shared,
    Path(volume): Path<String>,
    Query(options): Query<Options>,
) -> Answer {
    answer(daemon.history(&parse(&volume)?, options.most.unwrap_or(usize::MAX)).await)
}

async fn define_volume(State(daemon): Shared, Path(volume): Path<String>, body: Bytes) -> Answer {
    let volume = parse(&volume)?;
    let body = from_json(&body)?;
    to_the_end(async move { daemon.define_volume(volume, body).await }).await
}

async fn forget_volume(State(daemon): Shared, Path(volume): Path<String>) -> Answer {
    let volume = parse(&volume)?;
    to_the_end(async move { daemon.forget_volume(&volume).await }).await
}

async fn define_master(State(daemon): Shared, Path(volume): Path<String>, body: Bytes) -> Answer {
    let volume = parse(&volume)?;
    let body = or_default(&body)?;
    to_the_end(async move { daemon.define_master(&volume, body).await }).await
}

async fn define_schedule(State(daemon): Shared, Path(volume): Path<String>, body: Bytes) -> Answer {
    let volume = parse(&volume)?;
    let body = from_json(&body)?;
    to_the_end(async move { daemon.define_schedule(&volume, body).await }).await
}

async fn forget_schedule(State(daemon): Shared, Path(volume): Path<String>) -> Answer {
    let volume = parse(&volume)?;
    to_the_end(async move { daemon.forget_schedule(&volume).await }).await
}

async fn plan(State(daemon): Shared, Path(volume): Path<String>) -> Answer {
    answer(daemon.plan(&parse(&volume)?).await)
}

async fn stop_part(State(daemon): Shared, Path((volume, part)): Path<(String, String)>) -> Answer {
    let volume = parse(&volume)?;
    let part = Part::try_from(part).map_err(Failure::usage)?;
    to_the_end(async move { daemon.stop_part(&volume, part).await }).await
}

async fn start_part(State(daemon): Shared, Path((volume, part)): Path<(String, String)>) -> Answer {
    let volume = parse(&volume)?;
    let part = Part::try_from(part).map_err(Failure::usage)?;
    to_the_end(async move { daemon.start_part(&volume, part).await }).await
}

async fn reload(State(daemon): Shared) -> Answer {
    to_the_end(async move { daemon.reload().await }).await
}

async fn remount(State(daemon): Shared, Path(volume): Path<String>, body: Bytes) -> Answer {
    let volume = parse(&volume)?;
    let body = or_default(&body)?;
    to_the_end(async move { daemon.remount(&volume, body).await }).await
}

async fn promote(State(daemon): Shared, Path(volume): Path<String>) -> Answer {
    let volume = parse(&volume)?;
    to_the_end(async move { daemon.promote(&volume).await }).await
}

async fn define_source(State(daemon): Shared, Path(volume): Path<String>, body: Bytes) -> Answer {
    let volume = parse(&volume)?;
    let body = from_json(&body)?;
    to_the_end(async move { daemon.define_source(&volume, body).await }).await
}

async fn forget_source(State(daemon): Shared, Path(volume): Path<String>) -> Answer {
    let volume = parse(&volume)?;
    to_the_end(async move { daemon.forget_source(&volume).await }).await
}

async fn define_target(State(daemon): Shared, Path(volume): Path<String>, body: Bytes) -> Answer {
    let volume = parse(&volume)?;
    let body = from_json(&body)?;
    to_the_end(async move { daemon.define_target(&volume, body).await }).await
}

async fn forget_target(State(daemon): Shared, Path((volume, host)): Path<(String, String)>) -> Answer {
    let volume = parse(&volume)?;
    to_the_end(async move { daemon.forget_target(&volume, &host).await }).await
}

async fn snapshot(State(daemon): Shared, Path(volume): Path<String>, body: Bytes) -> Answer {
    let volume = parse(&volume)?;
    let TakeSnapshot { rotation } = or_default(&body)?;
    to_the_end(async move { daemon.snapshot(&volume, rotation.as_deref()).await }).await
}

async fn snapshot_group(State(daemon): Shared, Path(group): Path<String>, body: Bytes) -> Answer {
    let group = parse(&group)?;
    let TakeSnapshot { rotation } = or_default(&body)?;
    to_the_end(async move { daemon.snapshot_group(&group, rotation.as_deref()).await }).await
}

async fn delete_snapshots(State(daemon): Shared, Path(volume): Path<String>, body: Bytes) -> Answer {
    let volume = parse(&volume)?;
    let what: DeleteSnapshots = from_json(&body)?;
    to_the_end(async move { daemon.delete(&volume, what).await }).await
}

async fn destroy(State(daemon): Shared, body: Bytes) -> Answer {
    let what = from_json(&body)?;
    to_the_end(async move { daemon.destroy(what).await }).await
}

async fn revert(State(daemon): Shared, Path((volume, number)): Path<(String, String)>) -> Answer {
    let volume = parse(&volume)?;
    let number = parse_number(&number)?;
    to_the_end(async move { daemon.revert(&volume, number).await }).await
}

async fn resize(State(daemon): Shared, Path(volume): Path<String>, body: Bytes) -> Answer {
    let volume = parse(&volume)?;
    let body = from_json(&body)?;
    to_the_end(async move { daemon.resize(&volume, body).await }).await
}

async fn hold(State(daemon): Shared, Path((volume, number, name)): Path<(String, String, String)>) -> Answer {
    let volume = parse(&volume)?;
    let number = parse_number(&number)?;
    to_the_end(async move { daemon.hold(&volume, number, &name).await }).await
}

async fn release(
    State(daemon): Shared,
    Path((volume, number, name)): Path<(String, String, String)>,
) -> Answer {
    let volume = parse(&volume)?;
    let number = parse_number(&number)?;
    to_the_end(async move { daemon.release(&volume, number, &name).await }).await
}

async fn replicate(State(daemon): Shared, Path(volume): Path<String>, body: Bytes) -> Answer {
    let asked: Replicate = from_json(&body)?;
    let volume: VolumeName = parse(&volume)?;
    let (outcome, state) = daemon.replicate(&volume, &asked).await?;
    if !asked.wait {
        return answer(Ok::<Outcome, Failure>(outcome));
    }
    let (events, source) = mpsc::channel::<ReplicateEvent>(1);
    match state {
        Some(state) => {
            drop(tokio::spawn(follow(format!("volume {volume} and {}", asked.host), state, events)))
        }
        None => events.send(ReplicateEvent::Already(outcome)).await.expect("the channel is new"),
    }
    Ok(lines_of(source))
}

async fn scrub(State(daemon): Shared, Path(volume): Path<String>, body: Bytes) -> Answer {
    let asked: Scrub = or_default(&body)?;
    let (outcome, events) = daemon.scrub(&parse(&volume)?, &asked).await?;
    if asked.wait { Ok(lines_of(events)) } else { answer(Ok::<Outcome, Failure>(outcome)) }
}

/// Events as lines of JSON, as they come.
fn lines_of<T: Serialize + Send + 'static>(mut events: mpsc::Receiver<T>) -> Response {
    let (mut lines, body) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            let mut line = serde_json::to_vec(&event).expect("an event is always JSON");
            line.push(b'\n');
            if lines.send_data(Bytes::from(line)).await.is_err() {
                return;
            }
        }
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(body)).into_response()
}

async fn peers(State(daemon): Shared) -> Answer {
    answer(Ok::<_, Failure>(daemon.peer_list()))
}

async fn add_peer(State(daemon): Shared, body: Bytes) -> Answer {
    let body = from_json(&body)?;
    to_the_end(async move { daemon.add_peer(body).await }).await
}

async fn remove_peer(State(daemon): Shared, Path(name): Path<String>) -> Answer {
    let name = parse::<NodeName>(&name)?;
    to_the_end(async move { daemon.remove_peer(&name).await }).await
}

/// Does what changes something to its end, even if whoever asked for it is gone before: half a change is none that
/// anybody asked for.
async fn to_the_end<T: Serialize + Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Answer {
    let done = tokio::spawn(work).await;
    answer(done.unwrap_or_else(|error| Err(Failure::failed(format!("the request was broken off: {error}")))))
}

fn answer<T: Serialize>(result: Result<T, Failure>) -> Answer {
    result.map(|value| Json(value).into_response())
}

fn parse<T: FromStr<Err: std::error::Error>>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error| Failure::usage(chain(&error)))
}

fn parse_number(text: &str) -> Result<SnapshotNumber, Failure> {
    text.parse().map_err(|_| Failure::usage(format!("{text:?} is not the number of a snapshot")))
}

fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::usage(format!("the request's body: {error}")))
}

/// A body that may be absent.
fn or_default<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Failure> {
    if body.is_empty() { Ok(T::default()) } else { from_json(body) }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.exit {
            Exit::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            Exit::Usage => StatusCode::BAD_REQUEST,
            Exit::Refused => StatusCode::CONFLICT,
        };
        (status, Json(self)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{sync::oneshot, time::timeout};

    use super::*;

    #[tokio::test]
    async fn a_change_is_made_to_the_end_though_nobody_waits_for_it() {
        let (done, made) = oneshot::channel();
        let change = to_the_end(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = done.send(());
            Ok(())
        });
        assert!(timeout(Duration::from_millis(5), change).await.is_err());
        made.await.unwrap();
    }
}
