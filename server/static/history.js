// Conversations, kept in this browser only. The oldest go when there is no room, and traces before words.

const KEY = "waver-conversations", WRITING = "waver-writing", MOST = 50;

export function all() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch {
    return [];
  }
}

/** Keep a conversation, as the first of all. Returns false where the browser keeps nothing. */
export function keep(conversation) {
  const list = [conversation, ...all().filter((each) => each.id !== conversation.id)].slice(0, MOST);
  for (let room = list.length; room > 0; room--) {
    const some = list.slice(0, room);
    if (write(some) || write(some.map(withoutTraces))) return true;
  }
  return false;
}

export const forget = (id) => write(all().filter((each) => each.id !== id));
export const forgetAll = () => localStorage.removeItem(KEY);

/** The conversation in which this tab is writing an answer; null where it is not. */
export const writing = (id) => (id ? sessionStorage.setItem(WRITING, id) : sessionStorage.removeItem(WRITING));

/** The conversation in which an answer was being written when this tab left the page. */
export const left = () => all().find((each) => each.id === sessionStorage.getItem(WRITING));

const untraced = (answer) => answer && { ...answer, trace: [] };
const withoutTraces = (conversation) => ({
  ...conversation, turns: conversation.turns.map((turn) => ({ ...turn, answer: untraced(turn.answer), partial: untraced(turn.partial) })),
});

function write(list) {
  try {
    localStorage.setItem(KEY, JSON.stringify(list));
    return true;
  } catch {
    return false;
  }
}

/** A conversation as Markdown. */
export function markdown({ title, turns }) {
  const parts = turns.map(({ question, answer, partial }) => `**Question**\n\n${question}\n\n**Answer**\n\n${(answer ?? partial)?.text || "(none)"}\n`);
  return `# ${title}\n\n${parts.join("\n")}`;
}
