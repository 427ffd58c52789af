/** One WebSocket, from the attempt to its end. The end is reported exactly once. */

const OPEN_TIMEOUT_MS = 8000;

/** Some proxies accept a WebSocket and close it at once: it counts as open after this time, or after a message. */
const SETTLE_MS = 300;

/**
 * @param {URL} url
 * @param {string[]} protocols the offered subprotocols
 * @param {{onOpen: () => void, onText: (text: string) => void, onEnd: (code?: number) => void}} listener
 *   `onEnd` receives the close code, or nothing if the connection was never established
 * @returns {() => void} closes the socket without a further call to the listener
 */
export function openSocket(url, protocols, { onOpen, onText, onEnd }) {
  const socket = new WebSocket(url, protocols);
  const listening = new AbortController();
  const { signal } = listening;
  let isOpen = false;

  const abandon = () => {
    clearTimeout(timer);
    listening.abort();
    socket.close();
  };
  const end = (code) => {
    abandon();
    onEnd(code);
  };
  const settle = () => {
    if (isOpen) return;
    isOpen = true;
    clearTimeout(timer);
    onOpen();
  };

  let timer = setTimeout(end, OPEN_TIMEOUT_MS);
  socket.addEventListener('open', () => {
    clearTimeout(timer);
    timer = setTimeout(settle, SETTLE_MS);
  }, { signal });
  socket.addEventListener('message', ({ data }) => {
    settle();
    onText(data);
  }, { signal });
  socket.addEventListener('close', ({ code }) => end(code), { signal });
  return abandon;
}
