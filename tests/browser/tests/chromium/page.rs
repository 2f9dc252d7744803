//! The page, as a user has it: frames pass, keys are pressed, and the canvas shows something.

use browser::Key;
use serde_json::{Value, json};

use crate::deadline;
use crate::devtools::Browser;
use crate::picture::Picture;
use crate::server::Server;

/// Notes how many pixels each call puts on a canvas: without an area it is the whole image.
const NOTE_PUTS: &str = "
    globalThis.puts = [];
    const put = CanvasRenderingContext2D.prototype.putImageData;
    CanvasRenderingContext2D.prototype.putImageData = function (image, x, y, ...area) {
        const [, , width, height] = area.length ? area : [0, 0, image.width, image.height];
        puts.push(width * height);
        put.call(this, image, x, y, ...area);
    };";
const READ_CANVAS: &str = "(() => {
    const { data, width, height } = context.getImageData(0, 0, canvas.width, canvas.height);
    const hex = Array.from(data, byte => byte.toString(16).padStart(2, '0')).join('');
    return { width, height, hex };
})()";

pub struct Page {
    browser: Browser,
    session: String,
    _server: Server,
}

impl Page {
    /// The page, after so many frames.
    pub fn open(frames: u64) -> Self {
        let server = Server::start();
        let mut browser = Browser::start();
        let blank = json!({ "url": "about:blank" });
        let target = browser.call(None, "Target.createTarget", blank).unwrap();
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call(None, "Target.attachToTarget", target).unwrap();
        let session = attached["sessionId"].as_str().unwrap().to_owned();
        let url = format!("{}?frames={frames}", server.address);
        let mut page = Self { browser, session, _server: server };
        page.call("Page.enable", json!({}));
        page.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": NOTE_PUTS }));
        page.call("Page.navigate", json!({ "url": url }));
        // Before the page is there, there are no figures.
        deadline::wait_until("the last frame", || {
            let text = page.figures();
            assert!(!text.contains("Error"), "{text}");
            page.evaluate("figures.frames").is_ok_and(|found| found == json!(frames))
        });
        page
    }

    /// The line of figures, or what is wrong.
    pub fn figures(&mut self) -> String {
        let text = self.evaluate("document.querySelector('#figures').textContent");
        text.unwrap_or_default().as_str().unwrap_or_default().to_owned()
    }

    /// Loads the page again, after a script.
    pub fn reload_with(&mut self, script: &str) {
        self.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": script }));
        self.call("Page.reload", json!({}));
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.browser.call(Some(&self.session), method, parameters).unwrap()
    }

    /// The value of an expression, or of its promise; an error if it throws.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value, String> {
        let parameters = json!({
            "expression": expression, "awaitPromise": true, "returnByValue": true,
        });
        let session = Some(self.session.as_str());
        let result = self.browser.call(session, "Runtime.evaluate", parameters)?;
        match &result["exceptionDetails"] {
            Value::Null => Ok(result["result"]["value"].clone()),
            exception => Err(exception.to_string()),
        }
    }

    /// A whole number.
    pub fn number(&mut self, expression: &str) -> u64 {
        self.evaluate(expression).unwrap().as_u64().unwrap()
    }

    /// Runs so many frames more.
    pub fn go(&mut self, frames: u64) {
        self.evaluate(&format!("go({frames})")).unwrap();
    }

    /// Presses or releases a key of the keyboard.
    pub fn key(&mut self, key: Key, is_down: bool) {
        let before = self.number("figures.keys");
        // The code by which Windows has it, without which Chromium knows no arrow keys.
        let (name, number) = match key {
            Key::Left => ("ArrowLeft", 37),
            Key::Up => ("ArrowUp", 38),
            Key::Right => ("ArrowRight", 39),
            Key::Down => ("ArrowDown", 40),
        };
        let kind = if is_down { "rawKeyDown" } else { "keyUp" };
        self.call(
            "Input.dispatchKeyEvent",
            json!({ "type": kind, "key": name, "code": name, "windowsVirtualKeyCode": number }),
        );
        deadline::wait_until("the key", || self.number("figures.keys") == before + 1);
    }

    /// The pixels of each call of `putImageData` since this was last asked.
    pub fn puts(&mut self) -> Vec<u64> {
        let puts = self.evaluate("puts.splice(0)").unwrap();
        puts.as_array().unwrap().iter().map(|pixels| pixels.as_u64().unwrap()).collect()
    }

    /// What the canvas shows.
    pub fn canvas(&mut self) -> Picture {
        let read = self.evaluate(READ_CANVAS).unwrap();
        let size = ["width", "height"].map(|name| read[name].as_u64().unwrap());
        let digits = read["hex"].as_str().unwrap().as_bytes().chunks_exact(2);
        let byte = |digits| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
        Picture { size: size.map(|n| u32::try_from(n).unwrap()), bytes: digits.map(byte).collect() }
    }
}
