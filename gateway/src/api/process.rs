//! How the process runs: rates of the last hour, the configuration in force and where each value comes from, the log level.
//!
//! Invariant: the configuration is shown as it was taken, secrets excepted: there are none in it.
//! Must not know: how the configuration is read.

use crate::{gateway::Gateway, rates::RateInfo};
use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// One key of the configuration.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SettingInfo {
    /// As in `log.retention_bytes`.
    pub key: String,
    pub value: String,
    /// `default`, `environment`, `command line`, `admin API`, or a file.
    pub source: String,
}

/// What is said on standard error.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogLevelInfo {
    /// As in `info` or `info,weir_log=debug`.
    pub level: String,
}

/// Refuses in words.
type SetLevel = dyn Fn(&str) -> Result<(), String> + Send + Sync;

/// Reads the log level, and sets it.
pub struct Level {
    pub get: Box<dyn Fn() -> String + Send + Sync>,
    pub set: Box<SetLevel>,
}

/// What is known of the process itself.
pub struct Process {
    pub settings: RwLock<Vec<SettingInfo>>,
    pub level: Level,
}

/// Steps of five seconds of the last hour, oldest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RatesInfo {
    pub rates: Vec<RateInfo>,
}

/// Steps of five seconds of the last hour, oldest first.
#[utoipa::path(get, path = "/api/v1/rates", responses((status = 200, body = RatesInfo)))]
pub(crate) async fn rates(State(gateway): State<Arc<Gateway>>) -> Json<RatesInfo> {
    Json(RatesInfo { rates: gateway.rates.steps() })
}

/// Every key, its value, and where that comes from.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SettingsInfo {
    pub settings: Vec<SettingInfo>,
}

/// Every key, its value, and where that comes from. Admin port only.
#[utoipa::path(get, path = "/api/v1/config", responses((status = 200, body = SettingsInfo)))]
pub(crate) async fn config(State(process): State<Arc<Process>>) -> Json<SettingsInfo> {
    Json(SettingsInfo { settings: process.settings.read().clone() })
}

/// The log level in force. Admin port only.
#[utoipa::path(get, path = "/api/v1/log-level", responses((status = 200, body = LogLevelInfo)))]
pub(crate) async fn log_level(State(process): State<Arc<Process>>) -> Json<LogLevelInfo> {
    Json(LogLevelInfo { level: (process.level.get)() })
}

/// Sets it until the next SIGHUP or restart. Admin port only.
#[utoipa::path(put, path = "/api/v1/log-level", request_body = LogLevelInfo,
    responses((status = 204, description = "It is set."), (status = 400, description = "Not a level."),
        (status = 403, description = "It comes from a page that is not the gateway's own.")))]
pub(crate) async fn set_log_level(State(process): State<Arc<Process>>, Json(wanted): Json<LogLevelInfo>) -> Response {
    match (process.level.set)(&wanted.level) {
        Ok(()) => {
            if let Some(setting) = process.settings.write().iter_mut().find(|s| s.key == "diagnostics.log_level") {
                setting.value = serde_json::Value::from(wanted.level.as_str()).to_string();
                setting.source = "admin API".into();
            }
            tracing::warn!("the log level is {} now, by the admin API", wanted.level);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(words) => (StatusCode::BAD_REQUEST, format!("{words}\n")).into_response(),
    }
}
