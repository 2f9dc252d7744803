//! What is served.

use oxhttp::model::header::{CACHE_CONTROL, CONTENT_TYPE};
use oxhttp::model::{Body, Method, Request, Response, StatusCode};

const INDEX: &str = include_str!("../page/index.html");
const SCRIPT: &str = include_str!("../page/main.js");

/// The answer to a request; `wasm` is the module.
pub fn answer(request: &Request<Body>, wasm: &[u8]) -> Response<Body> {
    let (status, kind, body) = match request.uri().path() {
        // The server would send a body after the answer to HEAD, too.
        _ if request.method() != Method::GET => {
            let text = "There is nothing but GET\n";
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", text.into())
        }
        "/" => (StatusCode::OK, "text/html; charset=utf-8", INDEX.into()),
        "/main.js" => (StatusCode::OK, "text/javascript; charset=utf-8", SCRIPT.into()),
        // Browsers compile nothing of another type while it arrives.
        "/browser.wasm" => (StatusCode::OK, "application/wasm", wasm.to_vec().into()),
        path => {
            let text = format!("There is no {path}\n");
            (StatusCode::NOT_FOUND, "text/plain; charset=utf-8", text.into())
        }
    };
    // A page that is built anew is another one.
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, kind)
        .header(CACHE_CONTROL, "no-store")
        .body(body)
        .unwrap_or_default()
}
