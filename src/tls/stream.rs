//! A connection, in the clear or in TLS, the same to a reader and a writer.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

/// A connection, in the clear or in TLS.
#[derive(Debug)]
pub enum Stream {
    /// In the clear.
    Plain(TcpStream),
    /// In TLS, as the server.
    Accepted(Box<server::TlsStream<TcpStream>>),
    /// In TLS, as the client.
    Connected(Box<client::TlsStream<TcpStream>>),
    /// In memory, in the clear.
    #[cfg(test)]
    Simulated(super::wire::Wire),
}

impl Stream {
    /// True if the connection is in TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Accepted(_) | Self::Connected(_))
    }

    /// The socket underneath.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Accepted(tls) => tls.get_ref().0,
            Self::Connected(tls) => tls.get_ref().0,
            #[cfg(test)]
            Self::Simulated(_) => panic!("a simulated connection has no socket"),
        }
    }

    /// The socket, to start TLS on it; `None` if it is in TLS already.
    pub fn into_tcp(self) -> Option<TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Accepted(_) | Self::Connected(_) => None,
            #[cfg(test)]
            Self::Simulated(_) => None,
        }
    }

    /// The other side's address.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().peer_addr()
    }

    /// Our address.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().local_addr()
    }

    /// Waits until a read is likely not to wait, holding no buffer meanwhile. It may return too early: what arrived
    /// in TLS may turn out to hold no bytes for a reader.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn readable(&self) -> io::Result<()> {
        // rustls wants to read unless it holds decrypted bytes, or the other side has said that it is done.
        let waits = match self {
            Self::Plain(_) => true,
            Self::Accepted(tls) => tls.get_ref().1.wants_read(),
            Self::Connected(tls) => tls.get_ref().1.wants_read(),
            #[cfg(test)]
            Self::Simulated(wire) => {
                wire.readable().await;
                return Ok(());
            }
        };
        if waits { self.tcp().readable().await } else { Ok(()) }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Accepted(tls) => Pin::new(tls).poll_read(cx, buf),
            Self::Connected(tls) => Pin::new(tls).poll_read(cx, buf),
            #[cfg(test)]
            Self::Simulated(wire) => Pin::new(wire).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Accepted(tls) => Pin::new(tls).poll_write(cx, buf),
            Self::Connected(tls) => Pin::new(tls).poll_write(cx, buf),
            #[cfg(test)]
            Self::Simulated(wire) => Pin::new(wire).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Accepted(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
            Self::Connected(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
            #[cfg(test)]
            Self::Simulated(wire) => Pin::new(wire).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Accepted(tls) => tls.is_write_vectored(),
            Self::Connected(tls) => tls.is_write_vectored(),
            #[cfg(test)]
            Self::Simulated(wire) => wire.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Accepted(tls) => Pin::new(tls).poll_flush(cx),
            Self::Connected(tls) => Pin::new(tls).poll_flush(cx),
            #[cfg(test)]
            Self::Simulated(wire) => Pin::new(wire).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Accepted(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::Connected(tls) => Pin::new(tls).poll_shutdown(cx),
            #[cfg(test)]
            Self::Simulated(wire) => Pin::new(wire).poll_shutdown(cx),
        }
    }
}
