//! A client of the streaming server.

use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::node::PATIENCE;

/// One connection.
pub(crate) struct Stream {
    socket: WebSocketStream<TcpStream>,
}

impl Stream {
    pub(crate) async fn connect(url: &str) -> Self {
        let mut request = url.replacen("http://", "ws://", 1).into_client_request().unwrap();
        let protocols = "v5.channel.k8s.io, v4.channel.k8s.io".parse().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocols);
        let address = request.uri().authority().unwrap().to_string();
        let stream = TcpStream::connect(address).await.unwrap();
        let (socket, response) = client_async(request, stream).await.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        Self { socket }
    }

    pub(crate) async fn send(&mut self, channel: u8, payload: &[u8]) {
        let message = [&[channel], payload].concat();
        self.socket.send(Message::Binary(message.into())).await.unwrap();
    }

    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            match tokio::time::timeout(PATIENCE, self.socket.next()).await.unwrap()?.ok()? {
                Message::Binary(data) => {
                    return data.split_first().map(|(channel, rest)| (*channel, rest.to_vec()));
                }
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }

    /// Everything said on stdout and stderr, and the status.
    pub(crate) async fn finish(mut self) -> (String, String) {
        let (mut output, mut status) = (Vec::new(), String::new());
        while let Some((channel, data)) = self.next().await {
            match channel {
                1 | 2 => output.extend(data),
                _ => status.push_str(&String::from_utf8(data).unwrap()),
            }
        }
        (String::from_utf8(output).unwrap(), status)
    }

    /// What the first forwarded port and its errors say, the port's number left out.
    pub(crate) async fn forwarded(mut self) -> (String, String) {
        let mut said = [Vec::new(), Vec::new()];
        while let Some((channel, data)) = self.next().await {
            said[usize::from(channel)].extend(data);
        }
        said.map(|bytes| String::from_utf8_lossy(bytes.get(2..).unwrap_or_default()).into_owned()).into()
    }
}
