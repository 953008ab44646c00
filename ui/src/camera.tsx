// A photograph: by the camera's own application where there is one, else in a dialog.

import type { RefObject } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Icon } from "./icons";
import { refused } from "./recorder";

export const hasCamera = (): boolean => navigator.mediaDevices?.getUserMedia !== undefined;

interface Props {
  dialog: RefObject<HTMLDialogElement | null>;
  open: boolean;
  take: (file: File) => void;
  close: () => void;
}

export function Camera({ dialog, open, take, close }: Props) {
  const video = useRef<HTMLVideoElement>(null);
  const [trouble, setTrouble] = useState("");
  const [ready, setReady] = useState(false);

  useEffect(() => {
    if (!open) return;
    let stream: MediaStream | null = null;
    let gone = false;
    setTrouble("");
    setReady(false);
    navigator.mediaDevices
      .getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } })
      .then((found) => {
        stream = found;
        if (gone || !video.current) return stop();
        video.current.srcObject = found;
      })
      .catch((error) => setTrouble(refused(error, "camera")));
    const stop = () => {
      for (const track of stream?.getTracks() ?? []) track.stop();
    };
    return () => {
      gone = true;
      stop();
    };
  }, [open]);

  const shoot = () => {
    const source = video.current;
    if (!source) return;
    const canvas = document.createElement("canvas");
    canvas.width = source.videoWidth;
    canvas.height = source.videoHeight;
    canvas.getContext("2d")?.drawImage(source, 0, 0);
    const shot = (blob: Blob | null) => {
      if (blob) take(new File([blob], "photo.jpg", { type: "image/jpeg" }));
      dialog.current?.close();
    };
    canvas.toBlob(shot, "image/jpeg", 0.92);
  };

  return (
    <dialog ref={dialog} class="camera" aria-label="Take a photograph" onClose={close}>
      {trouble ? (
        <p class="failure" role="alert">
          {trouble}
        </p>
      ) : (
        <video ref={video} autoplay muted playsInline onLoadedData={() => setReady(true)} />
      )}
      <div class="camera-buttons">
        <button type="button" class="quiet" onClick={() => dialog.current?.close()}>
          Cancel
        </button>
        <button type="button" class="primary" disabled={!ready || trouble !== ""} onClick={shoot}>
          <Icon name="camera" /> Take it
        </button>
      </div>
    </dialog>
  );
}
