//! Serves chat completions as a good Rust engineer would after a day: rig-core asks the backend,
//! tokio's mpsc carries the chunks, axum streams them, sqlx saves the answer.
//!
//! A task of its own relays each answer. It saves before `[DONE]`, and saves what there is if the
//! backend fails or the client leaves; an answer is lost only with the process. What rig-core
//! doesn't give out can't be passed on, and stands in `docs/benchmarks.md`.
//!
//! `DATABASE_URL` and `OPENAI_BASE_URL` must be set; the port it listens on is printed.

use std::{convert::Infallible, env, error::Error, time::Duration};

use axum::Router;
use axum::extract::{Json, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use futures::StreamExt;
use rig_core::completion::{CompletionRequest, CompletionResponse, FinishReason};
use rig_core::message::{AssistantContent, Message};
use rig_core::providers::openai::{OpenAI, OpenAIConfig};
use rig_core::streaming::{CompletionStream, Item, StreamEvent};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

/// Chunks that wait for a slow client before the backend has to wait too.
const BACKLOG: usize = 64;

const CREATE: &str = "CREATE TABLE IF NOT EXISTS rust_messages (
    id text PRIMARY KEY, trace_id text NOT NULL, model text NOT NULL, question jsonb NOT NULL,
    answer text NOT NULL, state text NOT NULL, finish_reason text, tokens bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now())";
const SAVE: &str = "INSERT INTO rust_messages
    (id, trace_id, model, question, answer, state, finish_reason, tokens)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";

#[derive(Clone)]
struct App {
    openai: OpenAI,
    pool: PgPool,
    keep_alive: Duration,
}

#[derive(Deserialize)]
struct ChatRequest {
    model: String,
    messages: Vec<ChatMessage>,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    stream_options: StreamOptions,
    /// Temperature, tools and all else: the backend's business.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, Default)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
struct ChatMessage {
    role: String,
    content: Value,
}

/// A refusal in OpenAI's shape.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(error(&self.1))).into_response()
    }
}

fn error(message: &str) -> Value {
    json!({"error": {"message": message, "type": "error", "param": null, "code": null}})
}

// --- what is asked --------------------------------------------------------------------------

/// A message's text. Pictures, sound and calls of tools would each need a mapping of their own.
fn text_of(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| part.get("text").and_then(Value::as_str))
            .collect(),
        _ => None,
    }
}

fn message_of(message: &ChatMessage) -> Result<Message, Refused> {
    let refuse = |what: String| Refused(StatusCode::BAD_REQUEST, what);
    let text = text_of(&message.content).ok_or_else(|| refuse("only text is understood".into()))?;
    match message.role.as_str() {
        "system" | "developer" => Ok(Message::system(text)),
        "user" => Ok(Message::user(text)),
        "assistant" => Ok(Message::assistant(text)),
        other => Err(refuse(format!(
            "messages of the role {other:?} are not understood"
        ))),
    }
}

fn completion_request(asked: &ChatRequest) -> Result<CompletionRequest, Refused> {
    let mut messages = asked
        .messages
        .iter()
        .map(message_of)
        .collect::<Result<Vec<_>, _>>()?;
    let prompt = messages
        .pop()
        .ok_or_else(|| Refused(StatusCode::BAD_REQUEST, "messages must not be empty".into()))?;
    let request = CompletionRequest::new(prompt).messages(messages);
    Ok(if asked.rest.is_empty() {
        request
    } else {
        request.additional_params(Value::Object(asked.rest.clone()))
    })
}

/// The caller's W3C trace id, or a new one.
fn trace_id(headers: &HeaderMap) -> String {
    headers
        .get("traceparent")
        .and_then(|value| value.to_str().ok()?.split('-').nth(1).map(str::to_owned))
        .unwrap_or_else(|| Uuid::new_v4().simple().to_string())
}

// --- an answer ------------------------------------------------------------------------------

/// One answer as it grows, and what its chunks and its row have in common.
struct Turn {
    app: App,
    id: String,
    trace_id: String,
    model: String,
    question: Value,
    created: u64,
    has_usage: bool,
    answer: String,
    tokens: i64,
    calls: usize,
}

enum Ending {
    Completed(Box<CompletionResponse>),
    Failed(String),
    /// The client has left.
    Dropped,
}

impl Turn {
    fn chunk(&self, delta: Value, finish_reason: Option<&str>) -> Value {
        json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        })
    }

    /// The delta that an event makes, if any.
    fn delta(&mut self, event: StreamEvent) -> Option<Value> {
        let mut delta = match event {
            StreamEvent::Text { text, .. } => {
                self.answer.push_str(&text);
                json!({"content": text})
            }
            StreamEvent::Reasoning { text, .. } => json!({"reasoning_content": text}),
            // Only the finished call has its id, so arguments can't be shown as they grow.
            StreamEvent::End {
                content: AssistantContent::ToolCall(call),
                ..
            } => {
                self.calls += 1;
                json!({"tool_calls": [{
                    "index": self.calls - 1, "id": call.id.wire(), "type": "function",
                    "function": {
                        "name": call.function.name.as_str(),
                        "arguments": call.function.arguments_value().to_string(),
                    },
                }]})
            }
            _ => return None,
        };
        if self.tokens == 0 {
            delta["role"] = json!("assistant");
        }
        self.tokens += 1;
        Some(delta)
    }

    /// Relay until the backend ends or the client leaves, then save and say so.
    async fn relay(
        mut self,
        mut stream: CompletionStream,
        first: Option<Item<StreamEvent>>,
        client: mpsc::Sender<Event>,
    ) {
        let ending = self.pump(&mut stream, first, &client).await;
        let ending = match ending {
            Some(ending) => ending,
            None => match stream.finish().await {
                Ok(response) => Ending::Completed(Box::new(response)),
                Err(error) => Ending::Failed(error.to_string()),
            },
        };
        let is_saved = self.save(&ending).await;
        let mut last = Vec::new();
        match &ending {
            Ending::Dropped => return,
            Ending::Failed(message) => last.push(error(message)),
            Ending::Completed(_) if !is_saved => last.push(error("the answer was not saved")),
            Ending::Completed(response) => {
                last.push(self.chunk(json!({}), Some(&finish_reason(response))));
                if self.has_usage {
                    let mut chunk = self.chunk(json!({}), None);
                    chunk["choices"] = json!([]);
                    chunk["usage"] = usage(response);
                    last.push(chunk);
                }
            }
        }
        for value in last {
            let _ = client.send(event(&value)).await;
        }
        let _ = client.send(Event::default().data("[DONE]")).await;
    }

    /// `None` when the backend has ended well.
    async fn pump(
        &mut self,
        stream: &mut CompletionStream,
        mut next: Option<Item<StreamEvent>>,
        client: &mpsc::Sender<Event>,
    ) -> Option<Ending> {
        loop {
            if let Some(Item::Event(found)) = next
                && let Some(delta) = self.delta(found)
                && client.send(event(&self.chunk(delta, None))).await.is_err()
            {
                return Some(Ending::Dropped);
            }
            next = tokio::select! {
                item = stream.next() => match item {
                    Some(Ok(item)) => Some(item),
                    Some(Err(error)) => return Some(Ending::Failed(error.to_string())),
                    None => return None,
                },
                () = client.closed() => return Some(Ending::Dropped),
            };
        }
    }

    async fn save(&self, ending: &Ending) -> bool {
        let (state, reason, tokens) = match ending {
            Ending::Completed(response) => {
                let reported = response.usage.output_tokens.map(|count| count as i64);
                (
                    "completed",
                    Some(finish_reason(response)),
                    reported.unwrap_or(self.tokens),
                )
            }
            Ending::Failed(_) => ("failed", None, self.tokens),
            Ending::Dropped => ("dropped", None, self.tokens),
        };
        let saved = sqlx::query(SAVE)
            .bind(&self.id)
            .bind(&self.trace_id)
            .bind(&self.model)
            .bind(&self.question)
            .bind(&self.answer)
            .bind(state)
            .bind(reason)
            .bind(tokens)
            .execute(&self.app.pool)
            .await;
        let (trace_id, id) = (&self.trace_id, &self.id);
        match (&saved, ending) {
            (Err(error), _) => tracing::error!(trace_id, id, %error, "not saved"),
            (_, Ending::Failed(error)) => tracing::warn!(trace_id, id, tokens, error, "failed"),
            _ => tracing::info!(trace_id, id, tokens, state, "answered"),
        }
        saved.is_ok()
    }
}

fn event(value: &Value) -> Event {
    Event::default().data(value.to_string())
}

fn finish_reason(response: &CompletionResponse) -> String {
    match response.finish_reason() {
        Some(FinishReason::Length) => "length".into(),
        Some(FinishReason::ToolCalls) => "tool_calls".into(),
        Some(FinishReason::ContentFilter) => "content_filter".into(),
        Some(FinishReason::Other(reason)) => reason,
        _ => "stop".into(),
    }
}

/// What rig-core has counted; the backend's own object is not given out.
fn usage(response: &CompletionResponse) -> Value {
    let usage = &response.usage;
    json!({
        "prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    })
}

// --- the service ----------------------------------------------------------------------------

async fn chat(
    State(app): State<App>,
    headers: HeaderMap,
    Json(asked): Json<ChatRequest>,
) -> Result<Response, Refused> {
    let failed = |error: &dyn Error| Refused(StatusCode::BAD_GATEWAY, error.to_string());
    let request = completion_request(&asked)?;
    let model = app.openai.chat(&asked.model);
    let keep_alive = KeepAlive::new().interval(app.keep_alive);
    let question = asked.messages.last().map(|message| message.content.clone());
    let mut turn = Turn {
        app,
        id: format!("chatcmpl-{}", Uuid::new_v4().simple()),
        trace_id: trace_id(&headers),
        model: asked.model,
        question: question.unwrap_or_default(),
        created: std::time::UNIX_EPOCH
            .elapsed()
            .map_or(0, |since| since.as_secs()),
        has_usage: asked.stream_options.include_usage,
        answer: String::new(),
        tokens: 0,
        calls: 0,
    };
    if !asked.stream {
        let response = model.call(request).await.map_err(|error| failed(&error))?;
        turn.answer = response.text().to_string();
        let (content, reason) = (turn.answer.clone(), finish_reason(&response));
        let body = json!({
            "id": turn.id, "object": "chat.completion", "created": turn.created,
            "model": turn.model, "usage": usage(&response),
            "choices": [{
                "index": 0, "finish_reason": reason,
                "message": {"role": "assistant", "content": content},
            }],
        });
        if !turn.save(&Ending::Completed(Box::new(response))).await {
            return Err(Refused(
                StatusCode::SERVICE_UNAVAILABLE,
                "the answer was not saved".into(),
            ));
        }
        return Ok(Json(body).into_response());
    }
    let mut stream = model.stream(request).map_err(|error| failed(&error))?;
    // Whatever goes wrong before the first event is still an HTTP status.
    let first = stream
        .next()
        .await
        .transpose()
        .map_err(|error| failed(&error))?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(turn.relay(stream, first, sender));
    let events = ReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    Ok(Sse::new(events).keep_alive(keep_alive).into_response())
}

async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    if let Ok(mut terminated) = signal(SignalKind::terminate()) {
        terminated.recv().await;
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,rust_contender=info"));
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .init();
    let pool = PgPoolOptions::new()
        .connect(&env::var("DATABASE_URL")?)
        .await?;
    sqlx::query(CREATE).execute(&pool).await?;
    let key = env::var("OPENAI_API_KEY").unwrap_or_else(|_| "none".into());
    let seconds = env::var("KEEP_ALIVE_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let app = App {
        openai: OpenAIConfig::new(key)
            .with_base_url(env::var("OPENAI_BASE_URL")?)
            .client(),
        pool,
        keep_alive: Duration::from_secs_f64(seconds.unwrap_or(15.0)),
    };
    let router = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/healthz", get(|| async { "ok" }))
        .with_state(app);
    let port = env::var("PORT").unwrap_or_else(|_| "0".into());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("port {}", listener.local_addr()?.port());
    let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
    axum::serve(listener, router)
        .with_graceful_shutdown(stopped())
        .await?;
    Ok(())
}
