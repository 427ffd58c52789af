/** Types of progressd.js. The messages are described in docs/protocol.md. */

export type Status = 'queued' | 'processing' | 'completed' | 'failed' | 'cancelled';

export interface Task {
  id: string;
  name: string;
  current: number;
  /** 0 if unknown */
  total: number;
  state: Status;
  unit?: string;
}

export interface ProgressData {
  current_step: number;
  /** 0 if unknown */
  total_steps: number;
  step_name: string;
  /** 0 to 100 */
  percent: number;
  unit?: string;
  /** units a second */
  rate?: number;
  phase?: string;
  tasks?: Task[];
  stalled?: boolean;
  slow?: boolean;
  eta_seconds?: number;
  /** seconds; the interval contains the true value with a probability of 80 % */
  eta?: { seconds: number; low: number; high: number; from: 'history' | 'rate' | 'producer'; runs?: number };
}

export interface LogLine {
  /** RFC 3339 */
  t: string;
  /** standard output, standard error, a note of progressd */
  s: 'o' | 'e' | 'n';
  text: string;
  partial?: true;
}

/** The data of each type of message. */
export interface MessageData {
  job_created: { kind: string; status: Status; created_at: string; name?: string; input_filename?: string; labels?: Record<string, string>; pipeline?: string };
  status_change: { old_status: Status; new_status: Status };
  progress: ProgressData;
  completed: { output_path: string | null; download_url: string | null; elapsed_seconds: number | null; page_count: number | null };
  error: { message: string };
  job_deleted: { status: Status; labels: Record<string, string> };
  page_preview: { page_number: number; preview_base64: string; stage: string; width: number; height: number };
  batch_progress: { completed: number; processing: number; pending: number; failed: number; total: number; cancelled: number };
  batch_completed: { success_count: number; failed_count: number; cancelled_count: number };
  log: { offset: number; lines: LogLine[]; missed?: number };
  server_status: { status: 'healthy' | 'failing'; error?: string };
  server_shutdown: { reason: string; countdown_secs: number };
  hello: undefined;
  resync: undefined;
  /** the connection of this watch; `since`: RFC 3339 */
  connection: { state: ConnectionState; since: string; transport?: 'websocket' | 'sse' | 'polling'; reason?: string };
}

export type ConnectionState = 'live' | 'polling' | 'reconnecting';

export type MessageOf<Type extends keyof MessageData> = {
  type: Type;
  job_id?: string;
  batch_id?: string;
  data: MessageData[Type];
  cursor?: string;
  /** RFC 3339 */
  time?: string;
};

export type Message = { [Type in keyof MessageData]: MessageOf<Type> }[keyof MessageData];

export interface WatchOptions {
  /** the id of a job; give one of `job`, `batch`, `log` and `jobs` */
  job?: string;
  batch?: string;
  /** the id of a job, for its log */
  log?: string;
  /** all jobs, the default */
  jobs?: true;
  /** a watch token, or a function that returns a new one each time that one is needed */
  token?: string | (() => string | Promise<string>);
  /** an API key; not for pages that other people open */
  key?: string;
  /** a cursor of an earlier watch; for a log, an offset */
  since?: string | number;
  /** seconds between two progress messages of a job */
  interval?: number;
  types?: readonly (keyof MessageData)[];
  signal?: AbortSignal;
  /** false: never poll */
  poll?: boolean;
}

export class ProgressdError extends Error {
  /** a stable word, such as `not_found`, `unauthorized`, `origin` or `unreachable` */
  readonly code: string;
  /** the HTTP status */
  readonly status?: number;
  /** seconds */
  readonly retryAfter: number;
  /** whether the same request may succeed later */
  readonly transient: boolean;
}

export class Watch extends EventTarget implements AsyncIterableIterator<Message> {
  /** the position of the newest message */
  readonly cursor: string | number | undefined;
  readonly state: ConnectionState | null;
  on<Type extends keyof MessageData>(type: Type, listener: (message: MessageOf<Type>) => void): () => void;
  on(type: 'message', listener: (message: Message) => void): () => void;
  on(type: 'refused', listener: (error: ProgressdError) => void): () => void;
  on(type: 'end', listener: () => void): () => void;
  next(): Promise<IteratorResult<Message, undefined>>;
  return(): Promise<IteratorResult<Message, undefined>>;
  [Symbol.asyncIterator](): this;
  close(): void;
  reconnect(): void;
  wake(): void;
}

export function watch(url: string | URL, options?: WatchOptions): Watch;

export interface SubmitOptions {
  pipeline?: string;
  options?: Record<string, unknown>;
  labels?: Record<string, string>;
  key?: string;
  signal?: AbortSignal;
  /** bytes; in browsers */
  onprogress?: (sent: { loaded: number; total: number }) => void;
  idempotencyKey?: string;
}

/** One file becomes a job, several become a batch. */
export function submit(
  url: string | URL, files: Blob | Iterable<Blob>, options?: SubmitOptions,
): Promise<{ job_id?: string; batch_id?: string; status: string; created_at: string }>;

export interface ReportOptions {
  key?: string;
  id?: string;
  kind?: string;
  name?: string;
  input_filename?: string;
  total_steps?: number;
  options?: Record<string, unknown>;
  labels?: Record<string, string>;
  lease_seconds?: number;
  /** by default `console.warn` */
  onerror?: (error: ProgressdError) => void;
}

export interface Report {
  readonly id: string;
  /** aborted when the job was cancelled, or when the daemon refuses the reports */
  readonly signal: AbortSignal;
  progress(step: number, total?: number, name?: string): void;
  progress(data: Partial<Omit<ProgressData, 'tasks'>> & { tasks?: (Partial<Task> & { id: string })[] }): void;
  log(text: string, stream?: 'stdout' | 'stderr'): void;
  complete(data?: { output_path?: string; page_count?: number }): Promise<void>;
  fail(message: string | Error): Promise<void>;
  cancel(): Promise<void>;
}

export function report(url: string | URL, options?: ReportOptions): Promise<Report>;

/** A job as in `GET /api/jobs/ID`. */
export interface Job {
  id: string;
  status: Status;
  kind?: string;
  name?: string;
  input_filename?: string;
  progress?: Partial<ProgressData> & { time?: string };
  error?: string;
  output_path?: string | null;
  [field: string]: unknown;
}

export function applied(job: Job, message: Message): Job;

export function getJson(
  url: string | URL, path: string, options?: { key?: string; token?: string; signal?: AbortSignal; method?: string },
): Promise<any>;
